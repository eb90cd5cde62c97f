//! Real migrations out of a real QEMU, judged by QEMU's own numbers and memory.

use super::{
    guest::{BUSY, Guest, RAM_BYTES, Recording, number, record},
    *,
};

/// A recorded channel with its tokens.
struct Channel {
    bytes: Vec<u8>,
    tokens: Vec<Token>,
    facts: StreamFacts,
}

/// Tokenises recorded channels under one block table, main channel first, in odd pieces.
fn read(recordings: Vec<Recording>, blocks: &mut BlockTable) -> Vec<Channel> {
    let mut inputs: Vec<_> = recordings
        .into_iter()
        .map(|recording| {
            (
                ChannelKind::sniff(recording.forward.first_chunk().unwrap()),
                recording,
            )
        })
        .collect();
    inputs.sort_by_key(|(kind, _)| *kind != ChannelKind::Main);
    inputs
        .into_iter()
        .map(|(kind, Recording { forward: bytes, .. })| {
            let cuts: Vec<_> = (0..bytes.len())
                .step_by(300_007)
                .map(|at| (at, false))
                .collect();
            let (tokens, facts) = tokenise(kind, &bytes, &cuts, 4096, blocks);
            Channel {
                bytes,
                tokens,
                facts,
            }
        })
        .collect()
}

/// Lays the pages that a channel carries into memory.
fn apply(channel: &Channel, ram: BlockId, memory: &mut [u8]) {
    let mut rest = &channel.bytes[..];
    for token in &channel.tokens {
        let (own, behind) = rest.split_at(token.len());
        let (addr, page) = match token {
            Token::Page { addr } => (addr, &own[8..]),
            Token::Body { addr } => (addr, own),
            Token::Zero { addr } => (addr, &[0; PAGE_BYTES][..]),
            Token::Raw { .. } => {
                rest = behind;
                continue;
            }
        };
        if addr.block == ram {
            let start = addr.index as usize * PAGE_BYTES;
            memory[start..start + PAGE_BYTES].copy_from_slice(page);
        }
        rest = behind;
    }
}

/// Pages where `a` and `b` differ, leaving out the legacy video and ROM window.
fn differing(a: &[u8], b: &[u8]) -> Vec<usize> {
    (0..RAM_BYTES)
        .step_by(PAGE_BYTES)
        .filter(|at| !(0xa_0000..0x10_0000).contains(at))
        .filter(|&at| a[at..at + PAGE_BYTES] != b[at..at + PAGE_BYTES])
        .collect()
}

fn assert_complete(facts: &StreamFacts) {
    assert_eq!(facts.lost_sync, None);
    assert!(
        facts.ram_end_seen && !facts.in_ram && facts.rounds > 0,
        "{facts:?}"
    );
}

#[test]
fn plain_precopy_rebuilds_the_guests_memory() {
    let mut guest = Guest::boot(&["-m", "64"]);
    let (_dir, path, recorder) = record(1, None);
    guest.never_converge();
    guest.migrate(&path);
    guest.wait_rounds(4);
    guest.let_converge();
    let numbers = guest.wait_completed();
    let mut blocks = BlockTable::new();
    let main = read(recorder.join().unwrap(), &mut blocks).remove(0);
    assert_complete(&main.facts);
    assert!(main.facts.switchover_start_seen);
    assert!(
        number(&numbers, "dirty-sync-count").unwrap() >= 4,
        "{numbers}"
    );
    assert_eq!(
        Some(main.facts.pages),
        number(&numbers, "normal"),
        "{numbers}"
    );
    assert_eq!(
        Some(main.facts.zero_pages),
        number(&numbers, "duplicate"),
        "{numbers}"
    );
    let tail = main.bytes.len() as u64 - main.facts.ram_end_bytes.unwrap();
    assert!(
        (1000..1 << 20).contains(&tail),
        "device state of {tail} bytes"
    );
    assert!(main.facts.raw_bytes < tail + 20_000, "{:?}", main.facts);

    // A first zero record may keep its block name and be raw; memory starts as zeroes anyway.
    let mut memory = vec![0; RAM_BYTES];
    apply(&main, blocks.intern(b"pc.ram").unwrap(), &mut memory);
    assert_eq!(differing(&memory, &guest.memory()), [0usize; 0]);
}

#[test]
fn multifd_channels_share_the_block_numbers_of_the_main_channel() {
    let mut guest = Guest::boot(&["-m", "64", "-uuid", "00112233-4455-6677-8899-aabbccddeeff"]);
    let (_dir, path, recorder) = record(3, None);
    guest.capabilities(&["multifd"]);
    guest.qmp("migrate-set-parameters", "{\"multifd-channels\":2}");
    guest.never_converge();
    guest.migrate(&path);
    guest.wait_rounds(4);
    guest.let_converge();
    let numbers = guest.wait_completed();
    let mut blocks = BlockTable::new();
    let channels = read(recorder.join().unwrap(), &mut blocks);
    let announced = blocks.len();
    assert_complete(&channels[0].facts);
    let sum = |of: fn(&StreamFacts) -> u64| channels.iter().map(|c| of(&c.facts)).sum::<u64>();
    assert_eq!(
        Some(sum(|f| f.pages)),
        number(&numbers, "normal"),
        "{numbers}"
    );
    assert_eq!(
        Some(sum(|f| f.zero_pages)),
        number(&numbers, "duplicate"),
        "{numbers}"
    );
    let mut memory = vec![0; RAM_BYTES];
    for channel in &channels[1..] {
        let facts = &channel.facts;
        assert_eq!(facts.lost_sync, None);
        assert_eq!(facts.vm_uuid.map(|uuid| uuid[15]), Some(0xff));
        assert_eq!(facts.multifd_flushes, channels[0].facts.multifd_flushes);
        let bodies = channel
            .tokens
            .iter()
            .filter(|t| matches!(t, Token::Body { .. }))
            .count();
        assert_eq!(bodies as u64, facts.pages);
        apply(channel, blocks.intern(b"pc.ram").unwrap(), &mut memory);
    }
    assert_eq!(
        blocks.len(),
        announced,
        "multifd packets name blocks of the block list"
    );
    // Pages written meanwhile may be on both channels; which is newer, only the barriers tell.
    let mut differing = differing(&memory, &guest.memory());
    differing.retain(|at| *at >= BUSY.end.max(0x10_0000));
    assert_eq!(differing, [0usize; 0]);
}

#[test]
fn xbzrle_deltas_are_skipped_exactly_and_full_pages_still_found() {
    let mut guest = Guest::boot(&["-m", "64"]);
    let (_dir, path, recorder) = record(1, None);
    guest.capabilities(&["xbzrle"]);
    guest.never_converge();
    guest.migrate(&path);
    guest.wait_rounds(6);
    guest.let_converge();
    let numbers = guest.wait_completed();
    let main = read(recorder.join().unwrap(), &mut BlockTable::new()).remove(0);
    assert_complete(&main.facts);
    assert_eq!(
        Some(main.facts.pages),
        number(&numbers, "normal"),
        "{numbers}"
    );
    assert_eq!(
        Some(main.facts.zero_pages),
        number(&numbers, "duplicate"),
        "{numbers}"
    );
    // QEMU also counts pages that turn out unchanged and are not sent. Its bytes are those of the
    // deltas (at least 2 each) and 3 bytes in front of each.
    let (_, xbzrle) = numbers.split_once("\"xbzrle-cache\"").unwrap();
    let deltas = main.facts.xbzrle_pages;
    assert!(
        deltas > 0 && deltas <= number(xbzrle, "pages").unwrap(),
        "{numbers}"
    );
    assert!(
        deltas * 5 <= number(xbzrle, "bytes").unwrap(),
        "{deltas} of {numbers}"
    );
}

#[test]
fn virtio_mem_and_dirty_bitmaps_are_walked() {
    let mut guest = Guest::boot(&[
        "-uuid",
        "00112233-4455-6677-8899-aabbccddeeff",
        "-m",
        "64,maxmem=1G",
        "-object",
        "memory-backend-ram,id=plug,size=256M,prealloc=off",
        "-device",
        "virtio-mem-pci,id=vm0,memdev=plug,requested-size=16M",
        "-blockdev",
        "driver=null-co,node-name=disk0,size=67108864,read-zeroes=on",
        "-device",
        "virtio-blk-pci,drive=disk0",
    ]);
    guest.qmp(
        "block-dirty-bitmap-add",
        "{\"node\":\"disk0\",\"name\":\"backup\"}",
    );
    let (_dir, path, recorder) = record(1, None);
    guest.capabilities(&["dirty-bitmaps", "validate-uuid"]);
    guest.migrate(&path);
    let numbers = guest.wait_completed();
    let main = read(recorder.join().unwrap(), &mut BlockTable::new()).remove(0);
    for section in [
        &b"virtio-mem-device-early"[..],
        b"dirty-bitmap",
        b"configuration/uuid",
    ] {
        let found = main
            .bytes
            .windows(section.len())
            .any(|window| window == section);
        assert!(
            found,
            "the stream must hold {}",
            String::from_utf8_lossy(section)
        );
    }
    assert_complete(&main.facts);
    assert_eq!(
        Some(main.facts.pages),
        number(&numbers, "normal"),
        "{numbers}"
    );
    assert_eq!(
        Some(main.facts.zero_pages),
        number(&numbers, "duplicate"),
        "{numbers}"
    );
}

#[test]
fn shared_memory_that_is_left_out_is_listed_with_its_address() {
    let mut guest = Guest::boot(&[
        "-m",
        "64",
        "-object",
        "memory-backend-memfd,id=ram0,size=64M,share=on",
        "-machine",
        "memory-backend=ram0",
    ]);
    let (_dir, path, recorder) = record(1, None);
    guest.capabilities(&["x-ignore-shared"]);
    guest.migrate(&path);
    let numbers = guest.wait_completed();
    let main = read(recorder.join().unwrap(), &mut BlockTable::new()).remove(0);
    assert_complete(&main.facts);
    assert_eq!(
        Some(main.facts.zero_pages),
        number(&numbers, "duplicate"),
        "{numbers}"
    );
    assert!(
        main.bytes.len() < RAM_BYTES / 4,
        "RAM itself is not in the stream"
    );
}

#[test]
fn postcopy_to_a_running_destination() {
    let mut source = Guest::boot(&["-m", "64"]);
    let mut target = Guest::start(&["-m", "64", "-incoming", "defer"]);
    let incoming = target.dir.path().join("incoming");
    for guest in [&mut source, &mut target] {
        guest.capabilities(&["postcopy-ram"]);
    }
    target.qmp(
        "migrate-incoming",
        &format!("{{\"uri\":\"unix:{}\"}}", incoming.display()),
    );
    let (_dir, path, recorder) = record(1, Some(incoming));
    source.never_converge();
    source.migrate(&path);
    source.wait_rounds(3);
    source.qmp("migrate-start-postcopy", "{}");
    let numbers = source.wait_completed();
    let recordings = recorder.join().unwrap();
    let back = recordings[0].backward.clone();
    let main = read(recordings, &mut BlockTable::new()).remove(0);
    assert_complete(&main.facts);
    assert!(main.facts.postcopy_listen_seen && main.facts.eof_section_seen);
    assert_eq!(
        Some(main.facts.pages),
        number(&numbers, "normal"),
        "{numbers}"
    );
    assert_eq!(
        Some(main.facts.zero_pages),
        number(&numbers, "duplicate"),
        "{numbers}"
    );
    let (_, facts) = whole(ChannelKind::ReturnPath, &back);
    assert_eq!((facts.lost_sync, facts.return_path.shut), (None, Some(0)));
    assert_eq!(facts.return_path.pongs, 4);
    assert_eq!(
        Some(facts.return_path.page_requests),
        number(&numbers, "postcopy-requests"),
        "{numbers}"
    );
    assert!(
        target
            .qmp("query-status", "{}")
            .contains("\"running\": true")
    );
}
