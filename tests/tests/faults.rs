//! Whatever is killed or cut, the guest runs on exactly one side, and a cut within the limit costs time
//! alone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use dwcp_lab::link::Shape;
use dwcp_lab::stack::DATA_PORT;
use dwcp_lab::watchdog::poll_until;
use dwcp_tests::scene::{PATIENCE, Scene, SceneConfig};
use rustix::process::Signal;
use serde_json::Value;

/// A thin and far line, so that each phase lasts long enough to be hit.
fn far() -> SceneConfig {
    SceneConfig {
        shape: Shape::new(200.0, 40.0, 0.0),
        ..SceneConfig::default()
    }
}

/// Waits for the moment between the end of RAM and the end of the migration.
fn wait_switchover(scene: &mut Scene<'_>) {
    let stopped = poll_until(PATIENCE, || {
        let state = scene.source.qmp().query_status().ok()?;
        (state == "finish-migrate").then_some(())
    });
    assert!(stopped.is_some(), "the switchover never came");
}

/// After a fault in the switchover: exactly one side runs, and what the job says is so.
fn check_one_side(scene: &mut Scene<'_>, id: &str) {
    let ends = ["completed", "failed", "cancelled"];
    let view = scene.wait(id, "an end", |view| {
        ends.iter().any(|end| view["state"] == *end)
    });
    let status = |guest: &mut dwcp_lab::guest::Guest| guest.qmp().query_status().ok();
    // An answer may still be on its way to one of the hypervisors.
    let settled = poll_until(Duration::from_secs(60), || {
        let source = status(&mut scene.source).as_deref() == Some("running");
        let destination = status(&mut scene.destination).as_deref() == Some("running");
        (source != destination).then_some(source)
    });
    let at_source = settled.unwrap_or_else(|| {
        panic!(
            "both or neither side runs: {:?} {:?}\n{view:#}",
            status(&mut scene.source),
            status(&mut scene.destination)
        )
    });
    let expected = if at_source { "source" } else { "destination" };
    assert_eq!(view["guest"], expected, "{view:#}");
    let runs = if at_source {
        &scene.source
    } else {
        &scene.destination
    };
    let verdict = runs.verify().unwrap();
    assert!(verdict.ok, "{}", verdict.line);
    assert_eq!(
        scene.source.ticks().doubled(),
        0,
        "the guest ran on both sides"
    );
}

#[test]
fn a_dead_control_plane_stops_nothing_and_a_new_one_sees_the_end() {
    let config = far();
    Scene::migrating(config, |scene, id| {
        scene.wait_underway(id);
        scene.a.kill_controlplane().unwrap();
        scene.b.kill_controlplane().unwrap();
        let state = scene.source.qmp().wait_migration(PATIENCE).unwrap();
        assert_eq!(state["status"], "completed", "{state}");
        scene.a.restart_controlplane().unwrap();
        scene.b.restart_controlplane().unwrap();
        scene.check_arrived(id);
    });
}

/// Kills a data plane before the switchover; the job then fails with the guest at the source.
fn kill_dataplane(scene: &mut Scene<'_>, id: &str, at_source: bool) -> Value {
    let node = if at_source {
        &mut scene.a
    } else {
        &mut scene.b
    };
    node.kill_dataplane().unwrap();
    let view = scene.wait_state(id, "failed");
    assert_eq!(view["guest"], "source", "{view:#}");
    view
}

#[test]
fn a_dead_data_plane_in_iteration_leaves_the_guest_at_the_source() {
    for at_source in [true, false] {
        let config = far();
        Scene::migrating(config, |scene, id| {
            scene.wait_underway(id);
            let view = kill_dataplane(scene, id, at_source);
            assert!(!view["failure"]["detail"].as_str().unwrap().is_empty());
            scene.check_stayed();
            let left: Vec<_> = std::fs::read_dir(scene.a.dir().join("sessions"))
                .unwrap()
                .collect();
            assert!(left.is_empty(), "left behind: {left:?}");
        });
    }
}

#[test]
fn a_dead_data_plane_in_setup_leaves_the_guest_at_the_source() {
    for at_source in [true, false] {
        let config = far();
        Scene::migrating(config, |scene, id| {
            kill_dataplane(scene, id, at_source);
            scene.check_stayed();
        });
    }
}

#[test]
fn a_dead_source_data_plane_in_the_switchover_leaves_one_guest() {
    let config = far();
    Scene::migrating(config, |scene, id| {
        wait_switchover(scene);
        scene.a.kill_dataplane().unwrap();
        check_one_side(scene, id);
    });
}

#[test]
fn a_dead_destination_data_plane_in_the_switchover_leaves_one_guest() {
    let config = far();
    Scene::migrating(config, |scene, id| {
        wait_switchover(scene);
        scene.b.kill_dataplane().unwrap();
        check_one_side(scene, id);
    });
}

#[test]
fn a_dead_destination_hypervisor_leaves_the_guest_at_the_source() {
    for in_switchover in [false, true] {
        let config = far();
        Scene::migrating(config, |scene, id| {
            if in_switchover {
                wait_switchover(scene);
            } else {
                scene.wait_underway(id);
            }
            scene.destination.process().signal(Signal::KILL).unwrap();
            let ends = ["completed", "failed"];
            let view = scene.wait(id, "an end", |view| {
                ends.iter().any(|end| view["state"] == *end)
            });
            if view["state"] == "completed" {
                // It had taken over and said so before it was killed: then the guest died there.
                assert!(in_switchover, "{view:#}");
                return;
            }
            assert_eq!(view["guest"], "source", "{view:#}");
            scene.check_stayed();
        });
    }
}

#[test]
fn a_dead_source_hypervisor_fails_the_migration_and_leaves_no_half_guest() {
    let config = far();
    Scene::migrating(config, |scene, id| {
        scene.wait_underway(id);
        scene.source.process().signal(Signal::KILL).unwrap();
        let view = scene.wait_state(id, "failed");
        assert!(
            !view["failure"]["cure"].as_str().unwrap().is_empty(),
            "{view:#}"
        );
        let never = poll_until(PATIENCE, || {
            let ended = scene.destination.process().ended().is_some();
            let state = scene.destination.qmp().query_status().ok();
            (ended || state.as_deref() == Some("inmigrate")).then_some(())
        });
        assert!(never.is_some(), "half a guest runs");
    });
}

#[test]
fn one_lane_cut_for_25_seconds_costs_time_alone() {
    let config = SceneConfig {
        shape: Shape::new(10.0, 20.0, 0.0),
        ..SceneConfig::default()
    };
    Scene::migrating(config, |scene, id| {
        scene.wait_underway(id);
        assert!(
            scene.ground.link.cut_flow(DATA_PORT, 2).is_some(),
            "no such lane"
        );
        std::thread::sleep(Duration::from_secs(5));
        let after_5_s = scene.view(id)["bytes"]["delivered"].as_u64().unwrap();
        std::thread::sleep(Duration::from_secs(20));
        let view = scene.view(id);
        assert_ne!(
            view["state"], "completed",
            "the cut was over before 25 seconds"
        );
        assert!(
            view["bytes"]["delivered"].as_u64().unwrap() > after_5_s,
            "nothing moves: {view:#}"
        );
        let view = scene.check_arrived(id);
        assert!(view["lanes"]["replaced"].as_u64().unwrap() > 0, "{view:#}");
    });
}

#[test]
fn the_link_cut_for_5_seconds_costs_time_alone() {
    link_cut(Duration::from_secs(5));
}

#[test]
fn the_link_cut_for_25_seconds_costs_time_alone() {
    link_cut(Duration::from_secs(25));
}

fn link_cut(pause: Duration) {
    let config = SceneConfig {
        shape: Shape::new(100.0, 20.0, 0.0),
        ..SceneConfig::default()
    };
    Scene::migrating(config, |scene, id| {
        scene.wait_underway(id);
        scene.ground.link.cut();
        std::thread::sleep(pause);
        assert_ne!(
            scene.view(id)["state"],
            "completed",
            "the cut came too late to matter"
        );
        scene.ground.link.restore();
        scene.check_arrived(id);
    });
}

#[test]
fn the_link_cut_in_the_switchover_costs_time_alone() {
    let config = far();
    Scene::migrating(config, |scene, id| {
        wait_switchover(scene);
        scene.ground.link.cut();
        std::thread::sleep(Duration::from_secs(5));
        scene.ground.link.restore();
        scene.check_arrived(id);
    });
}

#[test]
fn a_link_cut_for_longer_than_the_limit_leaves_the_guest_at_the_source() {
    let config = SceneConfig {
        shape: Shape::new(100.0, 20.0, 0.0),
        resume_limit_ms: 6_000,
        ..SceneConfig::default()
    };
    Scene::migrating(config, |scene, id| {
        scene.wait_underway(id);
        scene.ground.link.cut();
        let view = scene.wait_state(id, "failed");
        assert_eq!(view["failure"]["code"], "peer_lost", "{view:#}");
        assert_eq!(view["guest"], "source");
        scene.check_stayed();
    });
}
