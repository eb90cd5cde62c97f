//! Many connections of one session whose receiver takes one after the other, as the barrier of multifd
//! makes it: none may starve another, whatever lies in between.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use dwcp_lab::watchdog::Watchdog;
use dwcp_tests::pair::{Pair, PairOptions, noise};
use dwcp_tests::plane::Plane;

/// What connection `number` carries: recognised by its first bytes, `bytes` long.
fn content(number: u8, bytes: usize) -> Vec<u8> {
    let mut content = vec![0x11, 0x22, 0x33, 0x44, 0, 0, 0, 1, number];
    // Half of it shrinks, so that raw and encoded bytes take buffers of their own.
    while content.len() < bytes {
        content.extend(noise(u64::from(number) + content.len() as u64, 3_000));
        content.extend([number; 3_000]);
    }
    content
}

/// Connections that write all at once in pieces of `piece_bytes`; the receiver reads them one by one.
fn crowd(connections: u8, bytes: usize, piece_bytes: usize, v3: bool) {
    let _watchdog = Watchdog::new(
        "connections that starve each other",
        Duration::from_secs(120),
    );
    let pair = Pair::start(PairOptions::default());
    let source = Plane::attach(&pair.source_control());
    let destination = Plane::attach(&pair.destination_control());
    for plane in [&source, &destination] {
        plane.allow_v3(v3);
    }
    let writers: Vec<_> = (0..connections)
        .map(|number| {
            let mut client = pair.connect();
            let content = content(number, bytes);
            std::thread::spawn(move || {
                for piece in content.chunks(piece_bytes) {
                    client.write_all(piece).expect("the session was given up");
                    std::thread::sleep(Duration::from_micros(500));
                }
                client.shutdown(Shutdown::Write).unwrap();
                let mut back = Vec::new();
                client.read_to_end(&mut back).unwrap();
            })
        })
        .collect();
    let mut servers = HashMap::new();
    for _ in 0..connections {
        let mut server = pair.accept();
        server
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        let mut first = [0; 9];
        server.read_exact(&mut first).unwrap_or_else(|error| {
            panic!(
                "{error}: {:#?} {:#?}",
                source.sessions(),
                destination.sessions()
            )
        });
        assert!(servers.insert(first[8], server).is_none());
    }
    // Everything that may be on its way is, before the first is read to its end.
    std::thread::sleep(Duration::from_millis(500));
    for number in 0..connections {
        let mut server = servers.remove(&number).expect("a connection is missing");
        let mut got = content(number, 0);
        server.read_to_end(&mut got).unwrap_or_else(|error| {
            panic!(
                "connection {number} starves: {error}; {:#?}",
                source.sessions()
            )
        });
        assert!(
            got == content(number, bytes),
            "connection {number}: {} bytes",
            got.len()
        );
    }
    for writer in writers {
        writer.join().unwrap();
    }
    let id = source.sessions()[0].id;
    let (here, there) = (source.wait_over(id), destination.wait_over(id));
    assert_eq!(here.channels, u64::from(connections));
    assert!(here.held_bytes_max <= here.held_bytes_limit, "{here:#?}");
    assert_eq!(
        here.hypervisor_bytes_in, there.hypervisor_bytes_out,
        "{here:#?} {there:#?}"
    );
    pair.stop();
}

#[test]
fn a_few_connections_with_batches_of_middling_size() {
    crowd(4, 6_000_000, 70_000, true);
    crowd(4, 6_000_000, 70_000, false);
}

#[test]
fn a_few_connections_with_batches_of_a_few_bytes() {
    crowd(3, 400_000, 300, true);
    crowd(3, 1_500_000, 3_000, false);
}

#[test]
fn seventeen_connections_as_sixteen_of_multifd_make() {
    crowd(17, 1_200_000, 200_000, true);
}

#[test]
fn a_hundred_connections() {
    crowd(100, 150_000, 50_000, true);
}
