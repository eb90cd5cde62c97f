//! Lanes and links that slow down, vanish, come back or lead elsewhere cost time alone, in every phase before
//! the destination has taken over: each migration ends with the guest there, every byte of it right.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use dwcp_lab::link::Shape;
use dwcp_lab::stack::DATA_PORT;
use dwcp_lab::watchdog::poll_until;
use dwcp_tests::scene::{Ground, PATIENCE, Scene, SceneConfig};
use serde_json::json;

/// Far, thin enough to last, with a guest that goes on writing.
fn line() -> SceneConfig {
    SceneConfig {
        shape: Shape::new(80.0, 20.0, 0.0),
        dirty_pages_per_s: 800,
        ..SceneConfig::default()
    }
}

/// Where a migration stands when something is done to its link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Setup,
    FirstPass,
    Iteration,
    Switchover,
}

const PHASES: [Phase; 4] = [
    Phase::Setup,
    Phase::FirstPass,
    Phase::Iteration,
    Phase::Switchover,
];

fn wait_for(scene: &mut Scene<'_>, id: &str, phase: Phase) {
    let found = match phase {
        Phase::Setup => Some(()),
        Phase::FirstPass => {
            scene.wait_underway(id);
            Some(())
        }
        // A guest that converges at once has no second pass: then its switchover is met twice.
        Phase::Iteration => poll_until(PATIENCE, || {
            let state = scene.source.qmp().query_migrate().ok()?;
            let again = state["ram"]["dirty-sync-count"].as_u64() > Some(1);
            (again || state["status"] != "active").then_some(())
        }),
        Phase::Switchover => poll_until(PATIENCE, || {
            let state = scene.source.qmp().query_status().ok()?;
            ["finish-migrate", "postmigrate"]
                .contains(&state.as_str())
                .then_some(())
        }),
    };
    assert!(found.is_some(), "{phase:?} never came");
}

/// Does `harm` in each phase, for so long, and then restores the link.
fn harmed(
    config: SceneConfig,
    phases: &[Phase],
    pause: Duration,
    harm: impl Fn(&mut Scene<'_>, usize),
) {
    Scene::migrating(config, |scene, id| {
        for (nth, phase) in phases.iter().enumerate() {
            wait_for(scene, id, *phase);
            harm(scene, nth);
            std::thread::sleep(pause);
            scene.ground.link.restore();
        }
        scene.check_arrived(id);
    });
}

#[test]
fn the_link_cut_for_a_second_in_every_phase_of_one_migration() {
    harmed(line(), &PHASES, Duration::from_secs(1), |scene, _| {
        scene.ground.link.cut();
    });
}

#[test]
fn the_link_cut_for_5_seconds_in_every_phase_of_one_migration() {
    harmed(line(), &PHASES, Duration::from_secs(5), |scene, _| {
        scene.ground.link.cut();
    });
}

#[test]
fn the_link_cut_for_25_seconds_at_the_beginning_and_in_the_switchover() {
    let phases = [Phase::Setup, Phase::Switchover];
    harmed(line(), &phases, Duration::from_secs(25), |scene, _| {
        scene.ground.link.cut();
    });
}

/// The guest writes faster than the line carries, so that it goes from pass to pass until it may rest.
#[test]
fn the_link_cut_for_25_seconds_between_one_pass_and_the_next() {
    let config = SceneConfig {
        guest_mb: 128,
        dirty_pages_per_s: 20_000,
        downtime_limit_ms: 1,
        ..line()
    };
    Scene::migrating(config, |scene, id| {
        wait_for(scene, id, Phase::Iteration);
        scene.ground.link.cut();
        std::thread::sleep(Duration::from_secs(25));
        let state = scene.source.qmp().query_migrate().unwrap();
        assert_eq!(state["status"], "active", "the cut met no pass: {state}");
        scene.ground.link.restore();
        scene.source.set_rate(0).unwrap();
        let limit = json!({ "downtime-limit": 2_000 });
        scene
            .source
            .execute("migrate-set-parameters", limit)
            .unwrap();
        scene.check_arrived(id);
    });
}

/// One direction alone, each in turn: the end that still hears believes that all is well.
#[test]
fn a_link_that_carries_one_way_only_is_survived_both_ways() {
    let phases = [Phase::FirstPass, Phase::Iteration, Phase::Switchover];
    harmed(line(), &phases, Duration::from_secs(4), |scene, nth| {
        scene.ground.link.cut_from(nth % 2 == 1);
    });
}

/// A router forgets all connections: what is sent on them is lost without a word, and only new ones pass.
#[test]
fn a_router_that_forgets_its_connections_is_survived() {
    Scene::migrating(line(), |scene, id| {
        for phase in [Phase::FirstPass, Phase::Switchover] {
            wait_for(scene, id, phase);
            assert!(scene.ground.link.forget_flows(DATA_PORT) > 0, "no lanes");
        }
        scene.check_arrived(id);
    });
}

#[test]
fn a_source_that_gets_another_address_goes_on_from_there() {
    Scene::migrating(line(), |scene, id| {
        wait_for(scene, id, Phase::FirstPass);
        let link = &scene.ground.link;
        link.change_address(&scene.ground.a, link.a).unwrap();
        let view = scene.check_arrived(id);
        assert!(view["lanes"]["replaced"].as_u64().unwrap() > 0, "{view:#}");
    });
}

#[test]
fn a_destination_that_gets_another_address_is_found_there_when_the_source_is_told() {
    let config = SceneConfig {
        listen_any: true,
        ..line()
    };
    Scene::migrating(config, |scene, id| {
        wait_for(scene, id, Phase::FirstPass);
        let link = &scene.ground.link;
        let new = link.change_address(&scene.ground.b, link.b).unwrap();
        let there = format!("{new}:{DATA_PORT}");
        let told = scene
            .a
            .ctl(&["redirect", id, "--to", &there])
            .unwrap()
            .output()
            .unwrap();
        assert!(told.status.success(), "{told:?}");
        let view = scene.check_arrived(id);
        assert_eq!(view["destination"]["dataplane"], there, "{view:#}");
    });
}

/// The slow lane is filled like the others, and what it holds arrives late or not at all.
#[test]
fn lanes_that_crawl_hold_nothing_up_for_ever() {
    Scene::migrating(line(), |scene, id| {
        wait_for(scene, id, Phase::FirstPass);
        for lane in [1, 3, 5, 7, 9, 11] {
            let slowed = scene.ground.link.slow_flow(DATA_PORT, lane, 20_000);
            assert!(slowed.is_some(), "no such lane");
        }
        let view = scene.check_arrived(id);
        assert!(view["lanes"]["replaced"].as_u64().unwrap() > 0, "{view:#}");
    });
}

#[test]
fn packets_lost_late_and_doubled_cost_time_alone() {
    let config = SceneConfig {
        shape: Shape::new(80.0, 20.0, 5.0).mangled(5.0, 2.0),
        guest_mb: 128,
        ..line()
    };
    Scene::migrating(config, |scene, id| {
        scene.check_arrived(id);
    });
}

/// Four guests at once, of one host to another: all arrive, under a limit of all together for a while.
#[test]
fn four_guests_move_at_once_within_a_limit_of_all_together() {
    let config = SceneConfig {
        guest_mb: 128,
        dirty_pages_per_s: 100,
        ..line()
    };
    let ground = Ground::new(config.shape);
    let mut scene = Scene::new(&ground, config);
    let more: Vec<_> = (0..3).map(|_| scene.more_guests()).collect();
    let limited = scene
        .a
        .ctl(&["limit", "--all", "--to", "2M"])
        .unwrap()
        .output()
        .unwrap();
    assert!(limited.status.success(), "{limited:?}");
    let mut ids = vec![scene.start()];
    for (source, destination) in &more {
        let (status, view) = scene.request_for(source, destination);
        assert_eq!(status, 201, "{view}");
        ids.push(view["id"].as_str().unwrap().to_owned());
    }
    for id in &ids {
        scene.wait(id, "bytes", |view| {
            view["bytes"]["wire"].as_u64() > Some(1 << 20)
        });
    }
    let (from, start) = (scene.ground.link.wire_bytes(), std::time::Instant::now());
    std::thread::sleep(Duration::from_secs(3));
    let rate = (scene.ground.link.wire_bytes() - from) as f64 / start.elapsed().as_secs_f64();
    assert!(rate < 3_000_000.0, "{rate} bytes a second");
    let lift = json!({ "bandwidth_limit_bytes_per_s": 0 });
    let (status, view) = scene.a.api("PATCH", "/v1/link", Some(&lift)).unwrap();
    assert_eq!(status, 200, "{view}");
    scene.check_arrived(&ids[0]);
    for (id, (source, destination)) in ids[1..].iter().zip(more) {
        scene.wait_state(id, "completed");
        let verdict = destination.verify().unwrap();
        assert!(verdict.ok, "{}", verdict.line);
        assert_eq!(source.ticks().doubled(), 0);
    }
}
