//! A peer that lies about baselines: words that were not agreed on or are out of turn, blocks that nobody
//! holds. Its session fails closed; what another tenant has, and what nobody offered, is never told.

use dwcp_api::Failure;
use dwcp_baseline::image::Image;
use dwcp_baseline::{Kind, Store, Tenant};
use dwcp_dataplane::codec::Method;
use dwcp_dataplane::config::BaselineConfig;
use dwcp_dataplane::transport::handshake::InitiatorConfig;
use dwcp_dataplane::transport::wire::baseline::BaselineWord;
use dwcp_dataplane::transport::wire::batch::{FLAG_HISTORY, Marker};
use dwcp_dataplane::transport::{BatchSeq, Version};
use dwcp_tests::pair::{Pair, PairOptions, noise};

use crate::beside::Stage;
use crate::liar::{Liar, lie, lie_as};
use crate::peer::{fresh_id, proposal};

fn baseline_word(liar: &mut Liar, word: BaselineWord<'_>) {
    liar.peer.marker(0, &Marker::Baseline(word));
}

fn agreeing() -> InitiatorConfig {
    let mut config = proposal(fresh_id());
    config.params.baselines = true;
    config
}

/// A destination that keeps the baseline of a disk for the default tenant.
fn stage(dir: &std::path::Path) -> Stage {
    let store = BaselineConfig {
        dir: dir.join("store"),
        max_bytes: 64 << 20,
        keep_migrations: 1,
    };
    let image = dir.join("disk.img");
    std::fs::write(&image, noise(5, 64 * 4096)).unwrap();
    let opened = Store::open(&store.dir, store.limits()).unwrap();
    let mut blocks = Image::open(&image, None, &opened).unwrap();
    let added = opened.add(
        &Tenant::default(),
        (Kind::Image, "disk"),
        &mut blocks,
        &mut |_| true,
    );
    assert_eq!(added.unwrap().blocks, 64);
    let keeps = |_: &mut _, b: &mut dwcp_dataplane::config::Config| b.baseline = Some(store);
    Stage::around(Pair::start_with(PairOptions::default(), keeps))
}

/// The next batch is one page: this block.
fn send_known(liar: &mut Liar, baseline: u8, distance: i64) {
    let mut header = liar.next(&[7; 4096]);
    header.version = Version::V3;
    header.method = Method::Stored.code();
    header.flags = FLAG_HISTORY;
    // One operation of the seventh class for one page, and the way to its block.
    let zigzag = ((distance << 1) ^ (distance >> 63)) as u8;
    let ops = [7, zigzag << 1 | 1, baseline];
    let length = (ops.len() as u32).to_le_bytes();
    let payload = [&[1, 0], &length[..], &length[..], &ops[..]].concat();
    liar.send(&header, &payload);
}

#[test]
fn words_that_were_not_agreed_on_or_are_out_of_turn() {
    let mut keeps_none = Stage::start(PairOptions::default());
    lie(
        &mut keeps_none,
        "an offer without agreement",
        Failure::Protocol,
        |liar| {
            baseline_word(liar, BaselineWord::Offers(&[[1; 16]]));
        },
    );
    keeps_none.finish();

    let dir = tempfile::tempdir().unwrap();
    let mut stage = stage(dir.path());
    let words = [
        ("an answer from the source", BaselineWord::Holds(1)),
        (
            "a miss told by the source",
            BaselineWord::Missing(BatchSeq(0)),
        ),
    ];
    for (what, word) in words {
        lie_as(&mut stage, &agreeing(), what, Failure::Protocol, |liar| {
            baseline_word(liar, word)
        });
    }
    lie_as(
        &mut stage,
        &agreeing(),
        "two offers",
        Failure::Protocol,
        |liar| {
            baseline_word(liar, BaselineWord::Offers(&[[1; 16]]));
            baseline_word(liar, BaselineWord::Offers(&[[2; 16]]));
        },
    );
    stage.finish();
}

#[test]
fn blocks_that_were_not_agreed_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut stage = stage(dir.path());
    let before_any_word = |liar: &mut Liar| send_known(liar, 0, 0);
    lie_as(
        &mut stage,
        &agreeing(),
        "no word was said",
        Failure::Corrupted,
        before_any_word,
    );
    // Tags of this session that no manifest has: the destination holds none of them, whatever it has.
    let guessed = |liar: &mut Liar| {
        let tags: Vec<[u8; 16]> = (0..12).map(|nth| [nth; 16]).collect();
        baseline_word(liar, BaselineWord::Offers(&tags));
        send_known(liar, 3, 9);
    };
    lie_as(
        &mut stage,
        &agreeing(),
        "a guess",
        Failure::Corrupted,
        guessed,
    );
    stage.finish();
}

#[test]
fn blocks_outside_a_baseline_that_both_hold() {
    let dir = tempfile::tempdir().unwrap();
    let mut stage = stage(dir.path());
    let store = Store::open(
        &dir.path().join("store"),
        dwcp_baseline::Limits {
            bytes_max: 64 << 20,
            migrations_max: 1,
        },
    );
    let ids = store.unwrap().held(&Tenant::default()).unwrap();
    for (what, baseline, distance) in [
        ("a block past its end", 0, 60i64),
        ("another baseline", 1, 0),
    ] {
        let outside = |liar: &mut Liar| {
            let tag = liar.peer.offer_tag("default", &ids[0].0);
            baseline_word(liar, BaselineWord::Offers(&[tag]));
            // The answer is under way, and so is what was loaded for it.
            std::thread::sleep(std::time::Duration::from_millis(300));
            send_known(liar, baseline, distance + 4);
        };
        lie_as(&mut stage, &agreeing(), what, Failure::Corrupted, outside);
    }
    stage.finish();
}
