//! The kill switch without a quorum, and its release, which needs one.

use std::time::{Duration, Instant};

use dwcp_lab::watchdog::{Watchdog, poll_until};

use super::kit::{Cluster, FEATURE, PATIENCE};

#[test]
fn the_kill_switch_needs_no_quorum_and_its_release_does() {
    let _watchdog = Watchdog::new("kill switch", Duration::from_secs(300));
    let mut cluster = Cluster::begin(5);
    cluster.set(0, 10);
    (0..5).for_each(|at| cluster.wait_percentage(at, 10));
    // Two of five: nothing can be agreed on.
    (2..5).for_each(|at| cluster.kill(at));
    let command = format!("flags set {FEATURE} --percentage 90");
    assert!(
        cluster.ctl(0, &command).is_none(),
        "agreed without a quorum"
    );

    let thrown = Instant::now();
    cluster.ctl(0, "rollback").unwrap();
    let acted = thrown.elapsed();
    cluster.wait_forced(1, true);
    println!(
        "no quorum: answered after {acted:?}, on the other node seen after {:?}",
        thrown.elapsed()
    );
    assert!(
        cluster.ctl(1, "rollback --off").is_none(),
        "released without a quorum"
    );
    assert_eq!(
        (cluster.is_forced(0), cluster.is_forced(1)),
        (Some(true), Some(true))
    );

    // The one that heard of it tells those that come, while the one that threw is gone.
    cluster.kill(0);
    (2..5).for_each(|at| cluster.start(at));
    (1..5).for_each(|at| cluster.wait_forced(at, true));
    let recorded = poll_until(PATIENCE, || {
        let status = cluster.ctl(3, "cluster status")?;
        (status["throws"][0]["node"] == "h1").then_some(())
    });
    assert!(recorded.is_some(), "{}", cluster.log(3));

    // Released while two are away that still keep the throw on their disks.
    cluster.kill(4);
    let released = poll_until(PATIENCE, || cluster.ctl(3, "rollback --off"));
    assert!(released.is_some(), "{}", cluster.log(3));
    (1..4).for_each(|at| cluster.wait_forced(at, false));
    cluster.start(0);
    cluster.start(4);
    (0..5).for_each(|at| cluster.wait_forced(at, false));
    // Longer than it takes for each to be asked by each.
    let until = Instant::now() + Duration::from_secs(5);
    while Instant::now() < until {
        for at in 0..5 {
            assert_ne!(
                cluster.is_forced(at),
                Some(true),
                "an old throw acted again on {at}"
            );
        }
    }
    // And a new one acts.
    cluster.ctl(4, "rollback").unwrap();
    (0..5).for_each(|at| cluster.wait_forced(at, true));
}
