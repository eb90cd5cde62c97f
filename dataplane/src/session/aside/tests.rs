//! A guest's stream through two links, its batches made by several threads at once.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use dwcp_hugepages::arena::BackingPolicy;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::*;
use crate::codec::CodecVersion;
use crate::engine::mailbox::{Mailbox, mailbox};
use crate::intake::{Intake, ReadOutcome};
use crate::session::link::LinkOptions;
use crate::session::testing::agreed;
use crate::stream::testing::StreamBuilder;
use crate::stream::{ChannelKind, Tokeniser};
use crate::transport::outbound::SendStep;
use crate::transport::wire::batch::{BatchHeader, open_payload};
use crate::transport::{BatchSeq, ChannelId, LaneIx, Version};

const CHANNEL: ChannelId = ChannelId(0);

fn link(is_source: bool, encoders: &Encoders, worker: &Sender<ToWorker>) -> Link {
    let options = LinkOptions {
        is_source,
        backing: BackingPolicy::Ordinary,
        resume_limit_ns: 30_000_000_000,
        lanes_active: 1,
        encoders,
        worker,
    };
    let mut link = Link::new(&agreed(), &options, Nanos(0)).unwrap();
    link.outbound.open_channel(CHANNEL).unwrap();
    link.outbound.lane_up(LaneIx(0)).unwrap();
    link
}

/// Text, counters and pages that come again changed a little.
fn guest_stream() -> Vec<u8> {
    let page = |n: u64| -> [u8; 4096] {
        let mut page = [0; 4096];
        for (at, word) in page.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let text = format!("{:>7} {:>7}\n", n * 31 % 257, at as u64 ^ n);
            word.copy_from_slice(text.as_bytes());
        }
        page
    };
    let pages: Vec<[u8; 4096]> = (0..1_700).map(page).collect();
    let sent: Vec<(u64, &[u8; 4096])> = (0..2_000)
        .map(|n| (n % 900, &pages[(n * 7 % 1_700) as usize]))
        .collect();
    StreamBuilder::precopy(&sent, &[9; 30_000])
}

fn fresh(seq: BatchSeq, offset: u64, raw: FrameMut, raw_bytes: usize) -> Fresh {
    let raw_len = raw_bytes as u32;
    Fresh {
        header: DataHeader {
            version: Version::V3,
            method: 0,
            flags: 0,
            channel: CHANNEL,
            seq,
            offset,
            raw_len,
            digest: [0; 16],
        },
        raw,
        raw_bytes,
        meta: BatchMeta {
            channel: CHANNEL,
            raw_len,
            version: Version::V3,
            read_at: Nanos(0),
            express: false,
        },
    }
}

/// A line for which compression pays.
fn thin_link() -> EncodeHint {
    EncodeHint {
        link_bytes_per_s: Some(20_000_000),
        ..EncodeHint::default()
    }
}

/// Waits until a job rings.
fn wait(mail: &Mailbox<ToWorker>) {
    let limit = Timespec::try_from(Duration::from_secs(60)).unwrap();
    let mut fds = [PollFd::from_borrowed_fd(mail.fd(), PollFlags::IN)];
    assert!(poll(&mut fds, Some(&limit)).unwrap() > 0, "a job is lost");
    mail.drain_wakeups();
}

/// What arrived so far, decoded in order.
struct Arrived {
    link: Link,
    bytes: Vec<u8>,
    v1_batches: usize,
}

impl Arrived {
    fn take(&mut self, frame: Frame) {
        self.link.inbound.on_batch(frame).unwrap();
        while let Some(ready) = self.link.inbound.pop_ready().unwrap() {
            self.decode(&ready.header, &ready.frame);
        }
    }

    fn decode(&mut self, header: &BatchHeader, frame: &Frame) {
        let mut bytes = frame.bytes().to_vec();
        let keys = &self.link.keys_in;
        let left = open_payload(keys, &mut bytes).unwrap();
        let mut raw = vec![0; header.raw_len as usize];
        let version = match header.version {
            Version::V1 => CodecVersion::V1,
            Version::V3 => CodecVersion::V3,
        };
        let history = header.flags & FLAG_HISTORY != 0;
        let payload = &bytes[HEADROOM..left];
        self.link
            .decoder
            .decode(version, header.method, history, payload, &mut raw)
            .unwrap();
        self.v1_batches += usize::from(header.version == Version::V1);
        let bytes = u64::from(header.raw_len);
        self.link.inbound.note_delivered(CHANNEL, bytes).unwrap();
        self.bytes.extend_from_slice(&raw);
    }
}

fn send_all(link: &mut Link, allow_v3: bool, arrived: &mut Arrived) {
    loop {
        match link.outbound.poll_send(Nanos(1), allow_v3, |_| 0) {
            SendStep::Idle => break,
            SendStep::NeedsTranscode(seq) => encoding::transcode(link, seq).unwrap(),
            SendStep::Send(_, frame) => arrived.take(frame),
        }
    }
    arrived.link.inbound.want_ack();
    if let Some(ack) = arrived.link.inbound.ack_due(Nanos(2)) {
        link.on_ack(&ack, Nanos(2)).unwrap();
    }
}

#[test]
fn what_several_threads_made_is_the_stream_whatever_is_ready_first_and_whichever_version_is_allowed()
 {
    let (encoders, handles) = Encoders::start(2, 1, &[]).unwrap();
    let (worker, mail) = mailbox(4).unwrap();
    let mut link = link(true, &encoders, &worker);
    let none = Encoders::default();
    let mut arrived = Arrived {
        link: self::link(false, &none, &worker),
        bytes: Vec::new(),
        v1_batches: 0,
    };
    arrived.link.inbound.open_channel(CHANNEL).unwrap();
    let stream = guest_stream();
    let (mut writer, reader) = UnixStream::pair().unwrap();
    let sent = stream.clone();
    let writes = std::thread::spawn(move || writer.write_all(&sent).unwrap());
    let mut intake = Intake::new(ChannelKind::Main);
    let (mut batches, mut away, mut turns) = (0, 0, 0);
    while !intake.has_ended() || intake.waiting_bytes() > 0 {
        let allowed = link.outbound.may_read(CHANNEL);
        let read = intake.read(&reader, allowed, &link.pools_out).unwrap();
        if let ReadOutcome::Bytes(bytes) = read {
            link.outbound.on_read(CHANNEL, bytes).unwrap();
        }
        let (blocks, tokens, pools) = (&mut link.blocks, &mut link.tokens, &link.pools_out);
        let cut = intake.cut(intake.has_ended(), 100_000, blocks, tokens, pools);
        let Some(cut) = cut else {
            // The window is full, or half a record waits for the rest.
            turns += 1;
            assert!(turns < 1_000_000, "nothing moves");
            send_all(&mut link, true, &mut arrived);
            while take_back(&mut link).unwrap().is_some() {}
            continue;
        };
        let seq = link.outbound.next_seq();
        let fresh = fresh(seq, cut.offset, cut.frame, cut.raw_bytes);
        let meta = fresh.meta;
        match give_away(&mut link, &encoders, &thin_link(), fresh).unwrap() {
            Given::Away => away += 1,
            Given::Made(frame, _) => {
                link.outbound.push(meta, frame, Nanos(0)).unwrap();
            }
        }
        batches += 1;
        // Now and then v1 is forced, while some batches wait, some are out and some are on their way.
        let allow_v3 = batches % 11 < 7;
        if batches % 3 == 0 {
            send_all(&mut link, allow_v3, &mut arrived);
        }
        while take_back(&mut link).unwrap().is_some() {}
    }
    while link.outbound.reserved() > 0 {
        if take_back(&mut link).unwrap().is_none() {
            wait(&mail);
        }
    }
    send_all(&mut link, true, &mut arrived);
    writes.join().unwrap();
    assert!(
        away > batches / 4,
        "{away} of {batches} batches were given away"
    );
    assert!(arrived.v1_batches > 0, "no batch was made again in v1");
    assert!(arrived.bytes == stream);
    assert_eq!(link.jobs.spare.len(), link.jobs.count());
    encoders.stop();
    for handle in handles {
        handle.join().unwrap();
    }
}

#[test]
fn a_session_that_ends_while_batches_are_out_leaves_nothing_behind() {
    let (encoders, handles) = Encoders::start(1, 1, &[]).unwrap();
    let (worker, _mail) = mailbox(4).unwrap();
    let mut link = link(true, &encoders, &worker);
    let returns = Arc::downgrade(&link.jobs.returns);
    for _ in 0..2 {
        let seq = link.outbound.next_seq();
        let mut raw = link.pools_out.take(HEADROOM + 100_000).unwrap();
        raw.payload_mut().fill(7);
        // A tokeniser that is told that the stream ends takes what it does not know as raw bytes.
        let bytes = &raw.payload_mut()[HEADROOM..][..100_000];
        link.tokens.clear();
        let taken = Tokeniser::new(ChannelKind::Opaque).feed(
            bytes,
            true,
            &mut link.blocks,
            &mut link.tokens,
        );
        assert_eq!(taken, 100_000);
        let fresh = fresh(seq, 0, raw, 100_000);
        assert!(matches!(
            give_away(&mut link, &encoders, &thin_link(), fresh).unwrap(),
            Given::Away
        ));
    }
    drop(link);
    encoders.stop();
    for handle in handles {
        handle.join().unwrap();
    }
    assert!(
        returns.upgrade().is_none(),
        "a job keeps its way back alive"
    );
}

#[test]
fn one_slow_batch_is_expected_to_come_again_until_some_were_fast() {
    let (encoders, handles) = Encoders::start(0, 1, &[]).unwrap();
    let (worker, _mail) = mailbox(4).unwrap();
    let mut link = link(true, &encoders, &worker);
    let batch =
        |link: &mut Link, ns_per_byte: u64| link.note_encoded(1_000, 500, 1_000 * ns_per_byte);
    for _ in 0..20 {
        batch(&mut link, 1);
    }
    assert!(link.encode_ns(1_000) <= 1_100);
    batch(&mut link, 10);
    assert!(link.encode_ns(1_000) >= 10_000, "as slow as the last");
    batch(&mut link, 1);
    assert!(link.encode_ns(1_000) > 5_000, "one fast batch is no proof");
    for _ in 0..20 {
        batch(&mut link, 1);
    }
    assert!(link.encode_ns(1_000) <= 1_100);
    encoders.stop();
    for handle in handles {
        handle.join().unwrap();
    }
}
