//! What a majority agreed on is on every node, whoever was killed or cut off meanwhile; the kill switch waits for
//! nobody.

use std::time::{Duration, Instant};

use dwcp_lab::watchdog::{Watchdog, poll_until};

use super::kit::{Cluster, FEATURE, PATIENCE};
use super::trial::{LEADER, RECOVERY};

#[test]
fn three_nodes_keep_what_they_agreed_on() {
    let _watchdog = Watchdog::new("cluster", Duration::from_secs(300));
    let mut cluster = Cluster::begin(3);
    cluster.set(1, 10);
    (0..3).for_each(|at| cluster.wait_percentage(at, 10));

    let leader = cluster.leader(0, None);
    let (other, third) = ((leader + 1) % 3, (leader + 2) % 3);
    let killed = Instant::now();
    cluster.kill(leader);
    cluster.leader(other, Some(leader));
    let led = killed.elapsed();
    assert!(led < LEADER, "new leader after {led:?}");
    cluster.set(third, 20);
    cluster.start(leader);
    (0..3).for_each(|at| cluster.wait_percentage(at, 20));

    let leader = cluster.leader(other, None);
    let (other, third) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.plug(leader, "down");
    cluster.set(other, 30);
    cluster.wait_percentage(third, 30);
    let command = format!("flags set {FEATURE} --percentage 90");
    assert!(cluster.ctl(leader, &command).is_none(), "agreed alone");
    cluster.ctl(leader, "rollback");
    let alone = cluster.ctl(leader, "flags list").unwrap();
    assert_eq!(alone["force_v1"], true, "the kill switch waits for nobody");
    cluster.plug(leader, "up");
    cluster.wait_percentage(leader, 30);
    for at in 0..3 {
        let forced = poll_until(PATIENCE, || {
            let flags = cluster.ctl(at, "flags list")?;
            (flags["force_v1"] == true).then_some(())
        });
        assert!(
            forced.is_some(),
            "node {at} does not know of the throw: {}",
            cluster.log(at)
        );
    }

    (0..3).for_each(|at| cluster.kill(at));
    let killed = Instant::now();
    (0..3).for_each(|at| cluster.start(at));
    cluster.set(0, 40);
    let recovered = killed.elapsed();
    assert!(recovered < RECOVERY, "a write after {recovered:?}");
    for at in 0..3 {
        cluster.wait_percentage(at, 40);
        let flags = cluster.ctl(at, "flags list").unwrap();
        assert_eq!(flags["force_v1"], true);
    }
}

#[test]
fn a_dead_member_takes_no_lead_and_stops_nothing() {
    let _watchdog = Watchdog::new("transfer", Duration::from_secs(120));
    let mut cluster = Cluster::begin(3);
    let leader = cluster.leader(0, None);
    let (other, third) = ((leader + 1) % 3, (leader + 2) % 3);
    let hand_over = format!("cluster transfer {}", third + 1);
    cluster.kill(third);
    let asked = Instant::now();
    assert!(cluster.ctl(leader, &hand_over).is_none(), "to a dead one");
    cluster.set(other, 10);
    let stopped = asked.elapsed();
    assert!(stopped < 3 * LEADER, "a write after {stopped:?}");
    cluster.wait_percentage(leader, 10);

    cluster.start(third);
    cluster.wait_percentage(third, 10);
    let handed = poll_until(PATIENCE, || {
        let leader = cluster.leader(other, None);
        cluster.ctl(leader, &hand_over)
    });
    assert!(handed.is_some(), "{}", cluster.log(third));
    assert_eq!(cluster.leader(third, None), third);
    cluster.set(other, 20);
    (0..3).for_each(|at| cluster.wait_percentage(at, 20));
}
