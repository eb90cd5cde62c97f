//! Every kind of section, command and record on the main channel and the return path.

use super::*;
use crate::stream::testing::{RAM_SECTION, StreamBuilder};

fn main(builder: &mut StreamBuilder) -> (Vec<Token>, StreamFacts) {
    whole(ChannelKind::Main, &builder.finish())
}

#[test]
fn precopy_gives_pages_zeroes_and_ram_end() {
    let (a, b) = (page_of(3), page_of(9));
    let input = StreamBuilder::precopy(&[(0, &a), (1, &[0; 4096]), (2, &b), (7, &a)], b"device");
    let (tokens, facts) = whole(ChannelKind::Main, &input);
    let shape: Vec<Token> = tokens
        .iter()
        .filter(|token| !matches!(token, Token::Raw { .. }))
        .copied()
        .collect();
    assert_eq!(
        shape,
        [
            Token::Body { addr: addr(0, 0) },
            Token::Zero { addr: addr(0, 1) },
            Token::Page { addr: addr(0, 2) },
            Token::Page { addr: addr(0, 7) },
        ]
    );
    assert_eq!((facts.pages, facts.zero_pages, facts.rounds), (3, 1, 1));
    assert!(facts.ram_end_seen && facts.switchover_start_seen && !facts.in_ram);
    assert!(facts.destination_may_run());
    assert_eq!(facts.lost_sync, None);
    // The device tail is opaque: EOF behind it cannot be found.
    assert!(!facts.eof_section_seen);
    let tail = input.windows(5).rposition(|w| w == b"timer").unwrap() - 6;
    assert_eq!(facts.ram_end_bytes, Some(tail as u64));
}

#[test]
fn ram_end_is_reported_only_once_its_footer_has_passed() {
    let input = StreamBuilder::precopy(&[(0, &page_of(1))], b"device");
    let (_, facts) = whole(ChannelKind::Main, &input);
    let end = facts.ram_end_bytes.unwrap() as usize;
    let (_, before) = whole(ChannelKind::Main, &input[..end - 1]);
    assert!(!before.ram_end_seen && before.in_ram && !before.destination_may_run());
    let (_, after) = whole(ChannelKind::Main, &input[..end]);
    assert!(after.ram_end_seen && !after.in_ram);
}

#[test]
fn a_page_that_looks_like_ram_end_changes_nothing() {
    let mut forged = page_of(0);
    let mut end = StreamBuilder::empty();
    end.ram_eos().ram_end();
    let end = end.finish();
    forged[..end.len()].copy_from_slice(&end);
    let mut builder = StreamBuilder::new();
    builder.ram_start(&[("pc.ram", 1 << 20)]).part(RAM_SECTION);
    builder
        .page(Some("pc.ram"), 0, &forged)
        .page(None, 1, &forged);
    let input = builder.finish();
    for flush in 0..input.len() {
        let cuts = [(flush, true)];
        let (_, facts) = tokenise(ChannelKind::Main, &input, &cuts, 64, &mut BlockTable::new());
        assert!(!facts.ram_end_seen && facts.in_ram, "flush at {flush}");
        assert_eq!((facts.pages, facts.lost_sync), (2, None));
    }
}

#[test]
fn non_canonical_records_keep_their_header_raw() {
    let mut builder = StreamBuilder::new();
    builder
        .ram_start(&[("a", 1 << 20), ("b", 1 << 20)])
        .part(RAM_SECTION);
    builder
        .zero(Some("b"), 3)
        .zero(None, 4)
        .page(Some("a"), 5, &page_of(5));
    builder.page(None, 6, &page_of(6)).multifd_flush().ram_eos();
    let (tokens, facts) = main(&mut builder);
    assert!(tokens.contains(&Token::Zero { addr: addr(1, 4) }));
    assert!(!tokens.contains(&Token::Zero { addr: addr(1, 3) }));
    assert!(tokens.contains(&Token::Body { addr: addr(0, 5) }));
    assert!(tokens.contains(&Token::Page { addr: addr(0, 6) }));
    assert_eq!(
        (facts.pages, facts.zero_pages, facts.multifd_flushes),
        (2, 2, 1)
    );
}

#[test]
fn the_current_block_survives_section_ends() {
    let mut builder = StreamBuilder::new();
    builder
        .ram_start(&[("pc.ram", 1 << 20)])
        .part(RAM_SECTION)
        .zero(Some("pc.ram"), 0)
        .ram_eos();
    builder.part(RAM_SECTION).zero(None, 1).ram_eos();
    let (tokens, facts) = main(&mut builder);
    assert!(tokens.contains(&Token::Zero { addr: addr(0, 1) }));
    assert_eq!(facts.rounds, 2);
}

#[test]
fn broken_records_lose_sync_and_no_bytes() {
    let record = |edit: &dyn Fn(&mut StreamBuilder)| {
        let mut builder = StreamBuilder::new();
        builder.ram_start(&[("pc.ram", 1 << 20)]).part(RAM_SECTION);
        edit(&mut builder);
        builder.ram_eos().ram_end();
        let (_, facts) = main(&mut builder);
        assert!(!facts.ram_end_seen && facts.destination_may_run());
        facts.lost_sync
    };
    let lost = Some(LostSync::RamRecord);
    // CONTINUE without a block before it, unknown block, outside the block.
    assert_eq!(
        record(&|b| {
            b.zero(None, 0);
        }),
        lost
    );
    assert_eq!(
        record(&|b| {
            b.zero(Some("vga"), 0);
        }),
        lost
    );
    assert_eq!(
        record(&|b| {
            b.zero(Some("pc.ram"), 256);
        }),
        lost
    );
    assert_eq!(
        record(&|b| {
            b.zero(Some("pc.ram"), 0).page(None, 256, &page_of(1));
        }),
        lost
    );
    // A zero record with another fill byte; flags that exclude each other; EOS with an offset.
    assert_eq!(
        record(&|b| {
            b.be64(2).counted("pc.ram").raw(&[1]);
        }),
        lost
    );
    assert_eq!(
        record(&|b| {
            b.zero(Some("pc.ram"), 0).be64(0x22).raw(&[7]);
        }),
        lost
    );
    assert_eq!(
        record(&|b| {
            b.zero(Some("pc.ram"), 0).be64(0x2a).raw(&[0]);
        }),
        lost
    );
    assert_eq!(
        record(&|b| {
            b.be64(0x1010);
        }),
        lost
    );
    assert_eq!(
        record(&|b| {
            b.be64(0x80);
        }),
        lost
    );
    assert_eq!(
        record(&|b| {
            b.be64(0x40).counted("pc.ram").raw(&[2, 0, 0]);
        }),
        lost
    );
}

#[test]
fn xbzrle_deltas_are_raw_and_skipped_exactly() {
    let mut builder = StreamBuilder::new();
    builder.ram_start(&[("pc.ram", 1 << 20)]).part(RAM_SECTION);
    builder
        .xbzrle(Some("pc.ram"), 3, b"delta")
        .xbzrle(None, 4, &[0x10; 4096])
        .zero(None, 5);
    let (tokens, facts) = main(builder.ram_eos().ram_end());
    assert!(tokens.contains(&Token::Zero { addr: addr(0, 5) }));
    assert_eq!((facts.xbzrle_pages, facts.ram_end_seen), (2, true));
}

#[test]
fn configuration_subsections() {
    let run = |name: &str, payload: &[u8]| {
        let mut builder = StreamBuilder::new();
        builder
            .configuration(name, payload)
            .ram_start(&[("pc.ram", 4096)])
            .ram_end();
        main(&mut builder).1
    };
    assert!(run("configuration/target-page-bits", &12u32.to_be_bytes()).ram_end_seen);
    let facts = run("configuration/target-page-bits", &16u32.to_be_bytes());
    assert_eq!(facts.lost_sync, Some(LostSync::PageSize));
    assert!(run("configuration/uuid", &[7; 16]).ram_end_seen);
    assert!(run("configuration/capabilities", &[0; 4]).ram_end_seen);
    assert_eq!(
        run("configuration/capabilities", b"\0\0\0\x01\x0amapped-ram").lost_sync,
        Some(LostSync::MappedRam)
    );
    assert_eq!(
        run("configuration/new", &[]).lost_sync,
        Some(LostSync::Configuration)
    );
    // Without a configuration section, as very old machine types send it.
    let mut builder = StreamBuilder::empty();
    builder
        .raw(b"QEVM")
        .be32(3)
        .ram_start(&[("pc.ram", 4096)])
        .ram_end();
    assert!(main(&mut builder).1.ram_end_seen);
    let (_, facts) = whole(ChannelKind::Main, b"QEVM\0\0\0\x02then something else");
    assert_eq!(facts.lost_sync, Some(LostSync::Prologue));
}

#[test]
fn ignore_shared_adds_an_address_to_each_block() {
    let mut builder = StreamBuilder::new();
    builder.configuration(
        "configuration/capabilities",
        b"\0\0\0\x01\x0fx-ignore-shared",
    );
    builder.start(RAM_SECTION, "ram", 4).be64(0x3000 | 4);
    builder
        .counted("a")
        .be64(0x1000)
        .be64(0)
        .counted("b")
        .be64(0x2000)
        .be64(1 << 32)
        .ram_eos();
    builder
        .part(RAM_SECTION)
        .zero(Some("b"), 1)
        .zero(None, 0)
        .ram_eos()
        .ram_end();
    let (tokens, facts) = main(&mut builder);
    assert!(facts.ram_end_seen);
    assert!(tokens.contains(&Token::Zero { addr: addr(1, 0) }));
}

#[test]
fn huge_page_sizes_in_the_block_list_are_found_by_looking() {
    let huge = 2u64 << 20;
    // (first block has the field, second block has the field)
    for (first, second) in [(true, false), (false, true), (true, true), (false, false)] {
        let mut builder = StreamBuilder::new();
        builder.postcopy_advise(huge | 4096);
        builder.start(RAM_SECTION, "ram", 4).be64((2 * huge) | 4);
        for (name, field) in [("a", first), ("b", second)] {
            builder.counted(name).be64(huge);
            if field {
                builder.be64(huge);
            }
        }
        builder
            .ram_eos()
            .part(RAM_SECTION)
            .zero(Some("b"), 1)
            .zero(None, 0)
            .ram_eos()
            .ram_end();
        let input = builder.finish();
        for flush in 0..input.len() {
            let cuts = [(flush, true)];
            let (_, facts) = tokenise(ChannelKind::Main, &input, &cuts, 64, &mut BlockTable::new());
            assert!(facts.ram_end_seen, "{first} {second}, flush at {flush}");
            assert_eq!(facts.zero_pages, 2);
        }
    }
    // Only small pages: no field, even if a name length could be mistaken for one.
    let mut builder = StreamBuilder::new();
    builder
        .postcopy_advise(4096)
        .ram_start(&[("pc.ram", huge)])
        .ram_end();
    assert!(main(&mut builder).1.ram_end_seen);
}

#[test]
fn a_block_list_that_does_not_add_up_loses_sync() {
    let mut builder = StreamBuilder::new();
    builder
        .start(RAM_SECTION, "ram", 4)
        .be64(0x1000 | 4)
        .counted("a")
        .be64(0x2000)
        .ram_eos();
    assert_eq!(main(&mut builder).1.lost_sync, Some(LostSync::BlockList));
}

#[test]
fn early_virtio_mem_state_is_walked() {
    let mut builder = StreamBuilder::new();
    builder.ram_start(&[("pc.ram", 1 << 20)]);
    builder.full(40, "0000:00:04.0/virtio-mem-device-early", 1);
    builder
        .be64(0x1_4000_0000)
        .be64(260 << 20)
        .be64(2 << 20)
        .be32(0)
        .be64(64 << 20)
        .raw(&[9; 24]);
    builder
        .footer(40)
        .part(RAM_SECTION)
        .zero(Some("pc.ram"), 0)
        .ram_eos()
        .ram_end();
    let (_, facts) = main(&mut builder);
    assert_eq!((facts.ram_end_seen, facts.zero_pages), (true, 1));
}

#[test]
fn dirty_bitmap_sections_are_walked() {
    let mut builder = StreamBuilder::new();
    builder
        .ram_start(&[("pc.ram", 1 << 20)])
        .start(2, "dirty-bitmap", 1);
    builder
        .raw(&[0x1c])
        .counted("node0")
        .counted("bitmap0")
        .be32(65536)
        .raw(&[1, 1])
        .footer(2);
    builder.ram_end().end(2);
    builder.raw(&[0x4c]).counted("node0").counted("bitmap0");
    builder.be64(0).be32(8192).be64(12).raw(&[0x7e; 12]);
    builder
        .raw(&[0x42])
        .be64(8192)
        .be32(8192)
        .raw(&[0x20, 1])
        .footer(2)
        .raw(&[0, 6]);
    let (_, facts) = main(builder.be32(2).raw(b"{}"));
    assert!(facts.ram_end_seen && facts.eof_section_seen);
    assert_eq!(facts.lost_sync, None);
}

#[test]
fn vfio_sections_are_walked() {
    const TAG: u64 = 0xffff_ffff_ef10_0000;
    let mut builder = StreamBuilder::new();
    builder
        .ram_start(&[("pc.ram", 1 << 20)])
        .start(3, "0000:00:05.0/vfio", 2);
    builder.be64(TAG | 3).be64(TAG | 1).footer(3).part(3);
    builder
        .be64(TAG | 4)
        .be64(5)
        .raw(b"state")
        .be64(TAG | 5)
        .footer(3)
        .ram_end();
    builder
        .end(3)
        .be64(TAG | 4)
        .be64(4096)
        .raw(&page_of(1))
        .be64(TAG | 1)
        .footer(3)
        .raw(&[0]);
    let (_, facts) = main(&mut builder);
    assert!(facts.ram_end_seen && facts.eof_section_seen);
    // The configuration has no length.
    let mut builder = StreamBuilder::new();
    builder
        .ram_start(&[("pc.ram", 1 << 20)])
        .start(3, "0000:00:05.0/vfio", 2)
        .be64(TAG | 2);
    assert_eq!(
        main(&mut builder).1.lost_sync,
        Some(LostSync::DeviceSection)
    );
}

#[test]
fn unknown_sections_and_missing_footers_lose_sync() {
    let run = |edit: &dyn Fn(&mut StreamBuilder)| {
        let mut builder = StreamBuilder::new();
        edit(&mut builder);
        main(&mut builder).1.lost_sync
    };
    let unknown = Some(LostSync::UnknownSection);
    assert_eq!(
        run(&|b| {
            b.start(1, "spapr/htab", 1);
        }),
        unknown
    );
    assert_eq!(
        run(&|b| {
            b.start(1, "ram", 5);
        }),
        unknown
    );
    assert_eq!(
        run(&|b| {
            b.full(1, "timer", 1);
        }),
        unknown
    );
    assert_eq!(
        run(&|b| {
            b.part(1);
        }),
        unknown
    );
    assert_eq!(
        run(&|b| {
            b.raw(&[0x55]);
        }),
        unknown
    );
    assert_eq!(
        run(&|b| {
            b.start(1, "ram", 4).be64(0x10).footer(2);
        }),
        Some(LostSync::Footer)
    );
    assert_eq!(
        run(&|b| {
            b.start(1, "ram", 4).be64(0x10).part(1);
        }),
        Some(LostSync::Footer)
    );
    assert_eq!(
        run(&|b| {
            for id in 0..65 {
                b.start(id, "dirty-bitmap", 1).raw(&[1]).footer(id);
            }
        }),
        Some(LostSync::TooManySections)
    );
}

#[test]
fn pages_of_blocks_beyond_the_table_are_raw() {
    let mut blocks = BlockTable::new();
    for i in 0..MAX_BLOCKS {
        assert!(blocks.intern(format!("filler{i}").as_bytes()).is_some());
    }
    assert_eq!(blocks.intern(b"one too many"), None);
    assert_eq!(blocks.len(), MAX_BLOCKS);
    let input = StreamBuilder::precopy(&[(0, &page_of(1)), (1, &page_of(2)), (2, &[0; 4096])], b"");
    let (tokens, facts) = tokenise(ChannelKind::Main, &input, &[], 64, &mut blocks);
    assert_eq!(
        tokens,
        [Token::Raw {
            len: input.len() as u32
        }]
    );
    assert_eq!(
        (facts.pages, facts.zero_pages, facts.ram_end_seen),
        (2, 1, true)
    );
}

#[test]
fn return_path_messages() {
    let mut builder = StreamBuilder::empty();
    builder
        .raw(&[0, 2, 0, 4])
        .be32(1)
        .raw(&[0, 3, 0, 20])
        .be64(0x5000)
        .be32(4096);
    builder
        .counted("pc.ram0")
        .raw(&[0, 4, 0, 12])
        .be64(0x6000)
        .be32(4096);
    builder
        .raw(&[0, 7, 0, 0, 0, 5, 0, 7])
        .counted("pc.ram")
        .be64(16)
        .raw(&[0xff; 16]);
    builder
        .be64(0x0123_4567_89ab_cdef)
        .raw(&[0, 6, 0, 4])
        .be32(1)
        .raw(&[0, 1, 0, 4])
        .be32(0);
    let input = builder.finish();
    for flush in 0..input.len() {
        let cuts = [(flush, true)];
        let (tokens, facts) = tokenise(
            ChannelKind::ReturnPath,
            &input,
            &cuts,
            4,
            &mut BlockTable::new(),
        );
        assert!(
            tokens
                .iter()
                .all(|token| matches!(token, Token::Raw { .. }))
        );
        let seen = ReturnFacts {
            shut: Some(0),
            pongs: 1,
            page_requests: 2,
            switchover_ack_seen: true,
        };
        assert_eq!(
            (facts.return_path, facts.lost_sync),
            (seen, None),
            "flush at {flush}"
        );
    }
    let (_, facts) = whole(ChannelKind::ReturnPath, &input[..input.len() - 1]);
    assert_eq!(facts.return_path.shut, None);
    let (_, facts) = whole(ChannelKind::ReturnPath, &[0, 9, 0, 0]);
    assert_eq!(facts.lost_sync, Some(LostSync::ReturnMessage));
}

#[test]
fn channels_are_told_apart() {
    assert_eq!(ChannelKind::sniff(b"QEVM"), ChannelKind::Main);
    assert_eq!(
        ChannelKind::sniff(&[0x11, 0x22, 0x33, 0x44]),
        ChannelKind::Multifd
    );
    // A record of the pre-empt channel: the offset's upper half. A command, where a main channel goes on.
    assert_eq!(ChannelKind::sniff(&[0, 0, 0, 0x28]), ChannelKind::Urgent);
    assert_eq!(ChannelKind::sniff(&[8, 0, 10, 0]), ChannelKind::Resumed);
    assert_eq!(ChannelKind::sniff(&[8, 1, 0, 0]), ChannelKind::Opaque);
    assert_eq!(ChannelKind::sniff(b"\x80\0\0\0"), ChannelKind::Opaque);
}
