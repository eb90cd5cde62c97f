//! Datagrams without reliability: each payload copied in at the sender and out at the receiver, as a
//! transport does that has frames on both ends.

use std::net::SocketAddr;
use std::time::Instant;

use dwcp_drivers::dpdk::datagrams::Sent;
use dwcp_drivers::dpdk::queue::BURST;

use crate::{Outcome, PAYLOAD_BYTES, PORT, Plan, WARM_UP, address, open};

pub(crate) fn send(plan: &Plan) -> Outcome<()> {
    let (mut port, mut datagrams) = open(plan, 1)?;
    let to = SocketAddr::new(address(2).ip, PORT);
    let source = vec![0x5a_u8; 1 << 20];
    let mut at = 0;
    let mut tended = Instant::now();
    // Until the receiver has seen enough and this process is killed.
    loop {
        for _ in 0..BURST {
            let sent = datagrams.send(to, &mut |room| {
                let bytes = &source[at..at + PAYLOAD_BYTES];
                room[..PAYLOAD_BYTES].copy_from_slice(bytes);
                at = (at + PAYLOAD_BYTES) % (source.len() - PAYLOAD_BYTES);
                PAYLOAD_BYTES
            });
            if sent != Sent::Queued {
                break;
            }
        }
        if datagrams.flush() > 0 {
            // Asking again at once would take the ring's indices from the receiver each time.
            for _ in 0..64 {
                std::hint::spin_loop();
            }
        }
        datagrams.recv(&mut |_, _| {});
        if tended.elapsed().as_millis() > 100 {
            port.tend();
            tended = Instant::now();
        }
    }
}

pub(crate) fn receive(plan: &Plan) -> Outcome<()> {
    let (_port, mut datagrams) = open(plan, 2)?;
    let mut frame = vec![0_u8; 1 << 20];
    let (mut at, mut bytes) = (0, 0);
    let mut began = None;
    loop {
        datagrams.recv(&mut |_, payload| {
            frame[at..at + payload.len()].copy_from_slice(payload);
            at = (at + payload.len()) % (frame.len() - PAYLOAD_BYTES);
            bytes += payload.len();
        });
        datagrams.flush();
        if bytes == 0 {
            continue;
        }
        let start = *began.get_or_insert_with(|| (Instant::now(), None));
        match start {
            (start, None) if start.elapsed() >= WARM_UP => {
                began = Some((start, Some((Instant::now(), bytes))));
            }
            (_, Some((start, before))) if start.elapsed() >= plan.duration => {
                let rate = (bytes - before) as f64 / start.elapsed().as_secs_f64() / 1e6;
                println!("MB/s {rate}");
                return Ok(());
            }
            _ => {}
        }
    }
}
