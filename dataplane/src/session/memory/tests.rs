//! The figures against links that are really made.

use super::*;
use crate::config::Config;
use crate::engine::encoders::Encoders;
use crate::engine::mailbox::mailbox;
use crate::session::link::{Link, LinkOptions};
use crate::session::testing::agreed;
use crate::transport::Nanos;

const ROLES: [bool; 2] = [true, false];

fn size(is_source: bool, encoders: usize, store_mib: u64, window_mib: u64) -> SessionSize {
    SessionSize {
        is_source,
        encoders,
        store_bytes: store_mib << 20,
        window_limit_bytes: window_mib << 20,
    }
}

fn default_size(is_source: bool) -> SessionSize {
    let config = Config::default();
    SessionSize {
        is_source,
        encoders: 64,
        store_bytes: config.store_bytes,
        window_limit_bytes: config.window_limit_bytes,
    }
}

/// What a link of this size has really taken, the little that has no figure left out.
fn taken(size: &SessionSize) -> u64 {
    let (encoders, threads) = Encoders::start(size.encoders, 1, &[]).unwrap();
    let (worker, _mail) = mailbox(1).unwrap();
    let mut agreed = agreed();
    agreed.params.page_store_bytes = size.store_bytes;
    agreed.params.window_limit_bytes = size.window_limit_bytes;
    let options = LinkOptions {
        is_source: size.is_source,
        backing: BackingPolicy::Ordinary,
        resume_limit_ns: 1,
        lanes_active: 1,
        encoders: &encoders,
        worker: &worker,
    };
    let link = Link::new(&agreed, &options, Nanos(0)).unwrap();
    let codecs = link.encoder.taken_bytes() + link.decoder.taken_bytes() + link.jobs.taken_bytes();
    let frames = link.pools_out.arena().len() + link.pools_in.arena().len();
    let lists = link.token_lists.taken_bytes() + link.tokens.taken_bytes();
    encoders.stop();
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
    (codecs + frames + lists) as u64
}

#[test]
fn a_link_takes_what_was_said_of_it() {
    for is_source in ROLES {
        let sizes = [
            size(is_source, 0, 1, 2),
            size(is_source, 1, 16, 8),
            size(is_source, 2, 17, 9),
            size(is_source, 3, 100, 33),
            size(is_source, 1, 300, 100),
            default_size(is_source),
        ];
        for size in sizes {
            let (said, taken) = (size.bytes(), taken(&size));
            println!("{size:?}: {said}, of it {taken} at the beginning");
            assert!(taken <= said, "{size:?} takes {taken} and said {said}");
            // Up to a hugepage of each arena is not used, and lists of the receiver come later.
            let slack = 4 * (2 << 20) + (OTHER_BYTES + TokenLists::BYTES) as u64;
            assert!(
                said <= taken + slack,
                "{size:?} takes {taken} and said {said}"
            );
        }
    }
}

#[test]
fn with_settings_that_nobody_changed_a_session_has_512_mb_at_most() {
    for is_source in ROLES {
        let bytes = default_size(is_source).bytes();
        assert!(bytes <= 512_000_000, "source: {is_source}: {bytes}");
    }
}

#[test]
fn the_least_limit_that_may_be_configured_has_room_for_a_session() {
    for is_source in ROLES {
        let bytes = default_size(is_source).least().bytes();
        assert!(bytes <= 256 << 20, "source: {is_source}: {bytes}");
    }
}

#[test]
fn what_is_fitted_fits_and_is_the_largest_that_does() {
    for is_source in ROLES {
        let most = size(is_source, 2, 300, 64);
        let least = most.least().bytes();
        assert_eq!(most.fitted(least - 1), None);
        assert_eq!(most.fitted(most.bytes()), Some(most));
        let mut before = most.least();
        for room in (least..most.bytes()).step_by(3_000_000) {
            let fitted = most.fitted(room).unwrap();
            assert!(fitted.bytes() <= room);
            let has_window = fitted.window_limit_bytes == most.window_limit_bytes;
            assert!(
                has_window || fitted.store_bytes == STORE_BYTES_LEAST,
                "the history goes first: {fitted:?}"
            );
            let mut next = fitted;
            if has_window {
                next.store_bytes += STEP_BYTES;
            } else {
                next.window_limit_bytes += STEP_BYTES;
            }
            assert!(next.bytes() > room, "{next:?} fits into {room} too");
            assert!(fitted.store_bytes >= before.store_bytes);
            assert!(fitted.window_limit_bytes >= before.window_limit_bytes);
            before = fitted;
        }
    }
}

#[test]
fn a_session_that_asks_for_little_is_not_given_more() {
    let little = size(true, 0, 1, 2);
    assert_eq!(little.least(), little);
    assert_eq!(little.fitted(u64::MAX), Some(little));
    assert_eq!(little.fitted(little.bytes() - 1), None);
    let vast = size(true, 64, 64 << 10, 1 << 10);
    assert!((64 << 30..70 << 30).contains(&vast.bytes()), "{vast:?}");
}
