//! Post-copy on the main channel: the package, what follows it, and the stream that recovers one.

use super::super::testing::{RAM_SECTION, StreamBuilder};
use super::*;

fn main(builder: &mut StreamBuilder) -> (Vec<Token>, StreamFacts) {
    whole(ChannelKind::Main, &builder.finish())
}

#[test]
fn postcopy_parses_behind_the_package_to_the_end() {
    let mut builder = StreamBuilder::new();
    builder
        .postcopy_advise(4096)
        .ram_start(&[("pc.ram", 1 << 20)]);
    builder
        .part(RAM_SECTION)
        .page(Some("pc.ram"), 1, &page_of(1))
        .ram_eos();
    builder
        .command(6, b"\0\x06pc.ram\0range")
        .packaged(&[0xee; 34_548])
        .command(2, &[0; 4]);
    builder
        .part(RAM_SECTION)
        .page(None, 2, &page_of(2))
        .ram_eos()
        .ram_end()
        .raw(&[0]);
    let input = builder.finish();
    let (tokens, facts) = whole(ChannelKind::Main, &input);
    assert!(facts.postcopy_listen_seen && facts.ram_end_seen && facts.eof_section_seen);
    assert!(tokens.contains(&Token::Page { addr: addr(0, 2) }));
    assert!(
        facts.postcopy_advised && !facts.postcopy_run_seen,
        "no package of post-copy"
    );
    let blob = input.iter().position(|&byte| byte == 0xee).unwrap();
    let (_, facts) = whole(ChannelKind::Main, &input[..blob]);
    assert!(facts.destination_may_run() && !facts.ram_end_seen);
    let (_, facts) = whole(ChannelKind::Main, &input[..blob - 1]);
    assert!(!facts.destination_may_run());
}

#[test]
fn run_is_found_at_the_end_of_the_package_and_what_follows_settles_it() {
    let mut blob = vec![8, 0, 4, 0, 0];
    blob.extend_from_slice(&[0xee; 5000]);
    blob.extend_from_slice(&[8, 0, 5, 0, 0]);
    let mut builder = StreamBuilder::new();
    builder
        .postcopy_advise(4096)
        .ram_start(&[("pc.ram", 1 << 20)])
        .packaged(&blob);
    let packaged = builder.bytes().len();
    builder.command(2, &[0; 4]);
    let ping = builder.bytes().len();
    builder
        .part(RAM_SECTION)
        .page(Some("pc.ram"), 2, &page_of(2))
        .ram_eos()
        .ram_end()
        .raw(&[0]);
    let input = builder.finish();
    let seen = |bytes: usize| {
        let (_, facts) = whole(ChannelKind::Main, &input[..bytes]);
        (facts.postcopy_run_seen, facts.postcopy_settled)
    };
    assert_eq!(seen(packaged - 1), (false, false));
    assert_eq!(seen(packaged), (true, false));
    assert_eq!(
        seen(ping),
        (true, false),
        "its last bytes may still be unwritten"
    );
    assert_eq!(seen(ping + 1), (true, true));
    let (tokens, facts) = whole(ChannelKind::Main, &input);
    assert!(facts.eof_section_seen && facts.lost_sync.is_none());
    assert!(tokens.contains(&Token::Body { addr: addr(0, 2) }));
    // A package of something else is passed as it is.
    for blob in [
        &[][..],
        &[1; 9],
        &[8, 0, 4, 0, 0, 1, 1, 1, 1, 1],
        &[8, 0, 5, 0, 0, 8, 0, 5, 0, 0],
    ] {
        let mut builder = StreamBuilder::new();
        builder.packaged(blob).command(2, &[0; 4]);
        let (_, facts) = main(&mut builder);
        assert!(
            !facts.postcopy_run_seen && facts.lost_sync.is_none(),
            "{blob:?}"
        );
    }
}

#[test]
fn a_recovered_stream_is_understood_from_its_middle() {
    let input = StreamBuilder::empty()
        .command(10, b"\x06pc.ram")
        .command(9, &[])
        .part(RAM_SECTION)
        .page(Some("pc.ram"), 700, &page_of(1))
        .page(None, 701, &page_of(2))
        .ram_eos()
        .ram_end()
        .raw(&[0])
        .finish();
    let (tokens, facts) = whole(ChannelKind::Resumed, &input);
    assert!(facts.postcopy_settled && facts.destination_may_run());
    assert!(facts.ram_end_seen && facts.eof_section_seen && facts.lost_sync.is_none());
    assert!(tokens.contains(&Token::Page { addr: addr(0, 701) }));
}
