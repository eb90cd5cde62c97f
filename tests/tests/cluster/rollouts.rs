//! A rollout under a leader that is killed, with a node that has v1 alone.

use std::time::Duration;

use dwcp_lab::watchdog::{Watchdog, poll_until};

use super::kit::{Cluster, FEATURE, NAMES, PATIENCE};

#[test]
fn a_rollout_outlives_its_leader_and_shows_who_has_v1_alone() {
    let _watchdog = Watchdog::new("rollout", Duration::from_secs(300));
    let mut cluster = Cluster::begin(3);
    cluster.attach(0, 3);
    cluster.attach(1, 3);
    cluster.attach(2, 1);
    let leader = cluster.leader(0, None);
    let (other, third) = ((leader + 1) % 3, (leader + 2) % 3);
    let begin = format!("rollout create {FEATURE} --phases 100 --min-time 1");
    let made = poll_until(PATIENCE, || cluster.ctl(other, &begin)).unwrap();
    let id = made["id"].as_str().unwrap().to_owned();
    (0..3).for_each(|at| cluster.wait_percentage(at, 100));
    let show = format!("rollout show {id}");
    let parts = poll_until(PATIENCE, || {
        let shown = cluster.ctl(third, &show)?;
        let part = |at: usize| {
            let nodes = shown["nodes"].as_array()?;
            let node = nodes.iter().find(|node| node["node"] == NAMES[at])?;
            Some((
                node["part"].as_str()?.to_owned(),
                node["version"].as_str()?.to_owned(),
            ))
        };
        let parts = [part(0)?, part(1)?, part(2)?];
        (parts[2].0 == "v1_only" && parts[1].1 == "v3" && parts[0].1 == "v3").then_some(parts)
    });
    let parts = parts.unwrap_or_else(|| panic!("{:?}", cluster.ctl(third, &show)));
    assert_eq!(parts[2].1, "v1");
    assert_eq!(parts[0].0, "in_share");

    // No work, no data: it holds, and says so.
    let why = |cluster: &Cluster, at: usize| {
        let shown = cluster.ctl(at, &show)?;
        Some((
            shown["why"].as_str()?.to_owned(),
            shown["decisions"].clone(),
        ))
    };
    let held = poll_until(PATIENCE, || {
        why(&cluster, third).filter(|it| it.0.contains("too little"))
    });
    assert!(held.is_some(), "{:?}", why(&cluster, third));

    cluster.kill(leader);
    let silent = poll_until(PATIENCE, || {
        why(&cluster, other).filter(|it| it.0.contains("silent"))
    });
    let (_, decisions) = silent.unwrap_or_else(|| panic!("{:?}", why(&cluster, other)));
    let by = decisions[0]["by"].as_str().unwrap();
    assert!(by == NAMES[other] || by == NAMES[third], "decided by {by}");
    cluster.start(leader);
    let paused = poll_until(PATIENCE, || {
        cluster.ctl(third, &format!("rollout pause {id}"))
    });
    assert_eq!(paused.unwrap()["stage"], "paused");
    let aborted = poll_until(PATIENCE, || {
        cluster.ctl(other, &format!("rollout abort {id}"))
    });
    assert_eq!(aborted.unwrap()["stage"], "aborted");
    (0..3).for_each(|at| cluster.wait_percentage(at, 0));
    let list = cluster.ctl(leader, "rollout list").unwrap();
    assert_eq!(list["rollouts"][0]["stage"], "aborted");
}
