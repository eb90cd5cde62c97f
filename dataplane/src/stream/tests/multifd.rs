//! Packets on a multifd channel, good and odd.

use super::*;
use crate::stream::testing::MultifdBuilder;

fn multifd(builder: &mut MultifdBuilder) -> (Vec<Token>, StreamFacts) {
    whole(ChannelKind::Multifd, &builder.finish())
}

#[test]
fn pages_come_out_as_bodies_under_shared_block_numbers() {
    let mut blocks = BlockTable::new();
    blocks.intern(b"vga.vram");
    let (a, b) = (page_of(1), page_of(2));
    let mut builder = MultifdBuilder::new(3, [5; 16]);
    builder
        .packet("pc.ram", &[(4, &a), (9, &b)], &[7, 8])
        .sync()
        .packet("vga.vram", &[(0, &a)], &[]);
    let input = builder.finish();
    let (tokens, facts) = tokenise(ChannelKind::Multifd, &input, &[], 64, &mut blocks);
    assert_eq!(
        tokens,
        [
            Token::Raw { len: 64 + 1344 },
            Token::Body { addr: addr(1, 4) },
            Token::Body { addr: addr(1, 9) },
            Token::Raw { len: 2 * 1344 },
            Token::Body { addr: addr(0, 0) },
        ]
    );
    assert_eq!(
        (facts.pages, facts.zero_pages, facts.multifd_flushes),
        (3, 2, 1)
    );
    assert_eq!(
        (facts.vm_uuid, facts.multifd_channel),
        (Some([5; 16]), Some(3))
    );
    assert_eq!(facts.lost_sync, None);
}

#[test]
fn device_state_and_compressed_packets_are_skipped_exactly() {
    let page = page_of(1);
    let mut builder = MultifdBuilder::new(0, [0; 16]);
    builder.device_state("0000:00:05.0/vfio", &[0x11; 70_000]);
    builder.compressed(1, "pc.ram", &[1, 2, 3], &[0x22; 777]);
    builder.packet("pc.ram", &[(4, &page)], &[]);
    let (tokens, facts) = multifd(&mut builder);
    let raw = 64 + 276 + 70_000 + 1344 + 777 + 1344;
    assert_eq!(
        tokens,
        [Token::Raw { len: raw }, Token::Body { addr: addr(0, 4) }]
    );
    assert_eq!(facts.pages, 4);
}

#[test]
fn any_flush_inside_a_packet_costs_at_most_that_page() {
    let (a, b, c) = (page_of(1), page_of(2), page_of(3));
    let mut builder = MultifdBuilder::new(0, [0; 16]);
    builder
        .packet("pc.ram", &[(0, &a), (1, &b)], &[])
        .packet("pc.ram", &[(2, &c)], &[5])
        .sync();
    let input = builder.finish();
    for flush in 0..input.len() {
        let cuts = [(flush, true)];
        let (tokens, facts) = tokenise(
            ChannelKind::Multifd,
            &input,
            &cuts,
            64,
            &mut BlockTable::new(),
        );
        let bodies = tokens
            .iter()
            .filter(|token| matches!(token, Token::Body { .. }))
            .count();
        assert!(bodies >= 2, "flush at {flush} left {bodies}");
        assert_eq!(
            (facts.pages, facts.zero_pages, facts.multifd_flushes),
            (3, 1, 1)
        );
        assert_eq!(facts.lost_sync, None);
    }
}

#[test]
fn odd_packets_make_the_rest_of_the_channel_raw() {
    let odd = |edit: &dyn Fn(&mut MultifdBuilder)| {
        let mut builder = MultifdBuilder::new(0, [0; 16]);
        edit(&mut builder);
        builder.packet("pc.ram", &[(0, &page_of(1))], &[]);
        let (tokens, facts) = multifd(&mut builder);
        assert_eq!(tokens.len(), 1);
        facts.lost_sync
    };
    let lost = Some(LostSync::MultifdPacket);
    assert_eq!(
        odd(&|b| {
            b.header(0x80, 128, "pc.ram", &[], &[], 0);
        }),
        lost
    );
    assert_eq!(
        odd(&|b| {
            b.header(0, 129, "pc.ram", &[], &[], 0);
        }),
        lost
    );
    assert_eq!(
        odd(&|b| {
            b.header(0, 1, "pc.ram", &[1, 2], &[], 8192);
        }),
        lost
    );
    assert_eq!(
        odd(&|b| {
            b.header(0, 1, "pc.ram", &[1], &[2], 4096);
        }),
        lost
    );
    assert_eq!(
        odd(&|b| {
            b.header(0, 128, "pc.ram", &[1], &[], 4095);
        }),
        lost
    );
    assert_eq!(
        odd(&|b| {
            b.header(1, 0, "", &[], &[], 1);
        }),
        lost
    );
    assert_eq!(
        odd(&|b| {
            b.header(0, 128, "", &[1], &[], 4096);
        }),
        lost
    );
    assert_eq!(
        odd(&|b| {
            b.raw(&[0; 1344]);
        }),
        lost
    );
    // A name that fills its field and an offset inside a page.
    assert_eq!(
        odd(&|b| {
            b.header(0, 128, &"n".repeat(256), &[1], &[], 4096);
        }),
        lost
    );
    let mut channel = MultifdBuilder::new(0, [0; 16])
        .packet("a", &[(1, &page_of(1))], &[])
        .finish();
    channel[64 + 320 + 7] = 8;
    assert_eq!(whole(ChannelKind::Multifd, &channel).1.lost_sync, lost);
    let (_, facts) = whole(ChannelKind::Multifd, &[0x11; 64]);
    assert_eq!(facts.lost_sync, Some(LostSync::Prologue));
}
