//! A control plane that never rests starves nobody but itself.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use dwcp_api::command::{Command, CommandRecord};
use dwcp_api::layout::{COMMAND_RING_OFFSET, COMMAND_SLOTS};
use dwcp_api::{Failure, SessionId};
use dwcp_lab::watchdog::Watchdog;
use dwcp_tests::pair::PairOptions;
use dwcp_tests::plane::{Plane, Turned};

use crate::beside::Stage;

/// Place of the consumer's index in a ring.
const CONSUMER_OFFSET: usize = 128;

#[test]
fn commands_without_end_do_not_keep_the_border_from_its_other_work() {
    let _watchdog = Watchdog::new("a flooded border", Duration::from_secs(240));
    let mut stage = Stage::start(PairOptions::default());
    let path = stage.pair.source_control();
    let stop = AtomicBool::new(false);
    let plane = &mut stage.source;
    let taken = std::thread::scope(|scope| {
        let flood = scope.spawn(|| {
            let nobody = SessionId([1; 16]);
            let record = CommandRecord::encode(1, &Command::Cancel { session: nobody });
            for _ in 0..COMMAND_SLOTS {
                plane.push(&record);
            }
            // From here on the same records again and again: as many are ready as there can be,
            // whenever the data plane looks.
            let body = plane.rings.body();
            let index = |offset| body.at::<AtomicU64>(COMMAND_RING_OFFSET + offset).unwrap();
            let (producer, consumer) = (index(0), index(CONSUMER_OFFSET));
            let mut taken = 0;
            while !stop.load(Ordering::Relaxed) {
                taken = consumer.load(Ordering::Acquire);
                producer.store(taken + u64::from(COMMAND_SLOTS) / 2, Ordering::Release);
                plane.bell.ring();
            }
            taken
        });
        // It still answers at its door.
        for _ in 0..20 {
            assert_eq!(Plane::try_attach(&path).err(), Some(Turned::Busy));
        }
        stage.beside.check_moves();
        stop.store(true, Ordering::Relaxed);
        flood.join().unwrap()
    });
    println!("{taken} commands were taken");
    assert!(taken > 1_000, "no flood");
    stage.source.reattach();
    let limit = Command::Limit {
        session: stage.id,
        rate_limit_bytes_per_s: 0,
    };
    assert_eq!(stage.source.command(&limit).0, Failure::None);
    stage.finish();
}
