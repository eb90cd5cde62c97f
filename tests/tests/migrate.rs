//! Real guests move between two hosts through two data planes, in every way that is promised.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::{Duration, Instant};

use dwcp_lab::guest::Arrival;
use dwcp_lab::link::Shape;
use dwcp_lab::pki::Authority;
use dwcp_lab::qemu::QemuVersion;
use dwcp_lab::watchdog::poll_until;
use dwcp_tests::scene::{Ground, PATIENCE, Scene, SceneConfig};
use rustix::process::Signal;
use serde_json::{Value, json};

/// Moves one guest and gives the migration as the source shows it.
fn moves(config: SceneConfig) -> Value {
    let ground = Ground::new(config.shape);
    let mut scene = Scene::new(&ground, config);
    let id = scene.start();
    scene.check_arrived(&id)
}

#[test]
fn a_guest_moves_over_the_main_channel() {
    let view = moves(SceneConfig::default());
    assert_eq!(view["version"], "v3");
    assert!(
        view["bytes"]["saved_fraction"].as_f64().unwrap() > 0.3,
        "{view:#}"
    );
}

#[test]
fn both_memories_are_equal_byte_for_byte() {
    let config = SceneConfig {
        arrival: Arrival::Pause,
        ..SceneConfig::default()
    };
    Scene::migrating(config, |scene, id| {
        scene.wait_state(id, "completed");
        assert_eq!(scene.destination.qmp().query_status().unwrap(), "paused");
        assert_eq!(
            scene.source.memory_hash().unwrap(),
            scene.destination.memory_hash().unwrap()
        );
    });
}

#[test]
fn a_guest_moves_over_2_4_and_8_multifd_channels() {
    for multifd in [2, 4, 8] {
        let view = moves(SceneConfig {
            multifd,
            ..SceneConfig::default()
        });
        assert!(
            view["pages"]["total"].as_u64().unwrap() > 10_000,
            "{multifd}: {view:#}"
        );
    }
}

#[test]
fn v1_and_v3_nodes_work_together() {
    for (versions, expected) in [((1, 1), "v1"), ((1, 3), "v1"), ((3, 1), "v1")] {
        let view = moves(SceneConfig {
            versions,
            ..SceneConfig::default()
        });
        assert_eq!(view["negotiated_version"], expected, "{versions:?}");
        assert_eq!(view["version"], expected, "{versions:?}");
    }
}

#[test]
fn a_guest_moves_to_an_older_hypervisor() {
    moves(SceneConfig {
        destination_qemu: QemuVersion::V7_2,
        ..SceneConfig::default()
    });
}

#[test]
fn three_guests_move_at_once() {
    let config = SceneConfig {
        dirty_pages_per_s: 100,
        ..SceneConfig::default()
    };
    let ground = Ground::new(config.shape);
    let mut scene = Scene::new(&ground, config);
    let mut others = [scene.more_guests(), scene.more_guests()];
    let first = scene.start();
    let ids: Vec<String> = others
        .iter()
        .map(|(source, destination)| {
            let (status, view) = scene.request_for(source, destination);
            assert_eq!(status, 201, "{view}");
            view["id"].as_str().unwrap().to_owned()
        })
        .collect();
    scene.check_arrived(&first);
    for (id, (source, destination)) in ids.iter().zip(&mut others) {
        scene.wait_state(id, "completed");
        assert_eq!(destination.qmp().query_status().unwrap(), "running");
        assert!(destination.verify().unwrap().ok);
        assert_eq!(source.ticks().doubled(), 0);
    }
}

#[test]
fn the_same_guest_is_not_moved_twice_at_once() {
    let config = SceneConfig::default();
    Scene::migrating(config, |scene, id| {
        let (status, problem) = scene.request();
        assert_eq!(status, 409, "{problem}");
        scene.check_arrived(id);
    });
}

#[test]
fn after_the_kill_switch_no_v3_batch_leaves_and_the_guest_arrives() {
    let config = SceneConfig {
        shape: Shape::new(200.0, 10.0, 0.0),
        guest_mb: 256,
        ..SceneConfig::default()
    };
    Scene::migrating(config, |scene, id| {
        scene.wait_underway(id);
        let before = scene.view(id);
        assert_eq!(before["version"], "v3", "{before:#}");
        let body = json!({ "force_v1": true });
        let (status, answer) = scene
            .a
            .api("POST", "/v1/feature-flags/force-v1", Some(&body))
            .unwrap();
        assert_eq!(status, 200, "{answer}");
        let view = scene.check_arrived(id);
        assert_eq!(view["version"], "v1");
        let rollback = &view["rollback"];
        let first_v1 = rollback["first_v1_batch_ns"].as_u64().unwrap();
        let last_v3 = rollback["last_v3_batch_ns"].as_u64().unwrap();
        assert!(
            last_v3 < first_v1,
            "a v3 batch left after v1 was forced: {rollback}"
        );
    });
}

#[test]
fn a_cancelled_migration_leaves_the_guest_at_the_source() {
    let config = SceneConfig {
        shape: Shape::new(100.0, 5.0, 0.0),
        ..SceneConfig::default()
    };
    Scene::migrating(config, |scene, id| {
        scene.wait_underway(id);
        let (status, view) = scene
            .a
            .api("DELETE", &format!("/v1/migrations/{id}"), None)
            .unwrap();
        assert!(matches!(status, 200 | 202), "{status}: {view}");
        let view = scene.wait_state(id, "cancelled");
        assert_eq!(view["guest"], "source", "{view:#}");
        scene.check_stayed();
    });
}

#[test]
fn a_bandwidth_limit_holds_and_can_be_lifted() {
    let config = SceneConfig {
        shape: Shape::new(100.0, 5.0, 0.0),
        dirty_pages_per_s: 0,
        ..SceneConfig::default()
    };
    Scene::migrating(config, |scene, id| {
        scene.wait_underway(id);
        let path = format!("/v1/migrations/{id}");
        let limit = json!({ "bandwidth_limit_bytes_per_s": 2_000_000 });
        let (status, view) = scene.a.api("PATCH", &path, Some(&limit)).unwrap();
        assert_eq!(status, 200, "{view}");
        // What lies in the lanes already goes out as fast as the line takes it.
        std::thread::sleep(Duration::from_secs(1));
        let (from, start) = (scene.ground.link.wire_bytes(), Instant::now());
        std::thread::sleep(Duration::from_secs(4));
        let rate = (scene.ground.link.wire_bytes() - from) as f64 / start.elapsed().as_secs_f64();
        assert!(rate < 3_500_000.0, "{rate} bytes a second");
        let lifted = json!({ "bandwidth_limit_bytes_per_s": 0 });
        assert_eq!(scene.a.api("PATCH", &path, Some(&lifted)).unwrap().0, 200);
        scene.check_arrived(id);
    });
}

#[test]
fn a_guest_moves_over_tls_while_its_certificates_are_rotated() {
    let authority = Authority::new(&["a", "b"]).unwrap();
    let config = SceneConfig {
        shape: Shape::new(100.0, 10.0, 0.0),
        dataplane_extra: ["a", "b"].map(|node| authority.table(node)),
        ..SceneConfig::default()
    };
    Scene::migrating(config, |scene, id| {
        scene.wait_underway(id);
        for node in ["a", "b"] {
            authority.rotate(node).unwrap();
        }
        scene.b.dataplane().signal(Signal::HUP).unwrap();
        let reloaded = poll_until(PATIENCE, || {
            let (_, metrics) = scene.b.api("GET", "/v1/health/detailed", None).ok()?;
            assert_eq!(metrics["handshakes"]["refused"], json!({}), "{metrics:#}");
            (metrics["handshakes"]["certificate_reloads"].as_u64()? > 0).then_some(())
        });
        assert!(reloaded.is_some(), "the certificates were not read anew");
        // A whole link that goes and comes back, under certificates that no lane began with.
        scene.ground.link.cut();
        std::thread::sleep(Duration::from_secs(1));
        scene.ground.link.restore();
        let view = scene.check_arrived(id);
        assert_eq!(view["version"], "v3", "{view:#}");
        let (_, health) = scene.b.api("GET", "/v1/health/detailed", None).unwrap();
        assert!(
            health["handshakes"]["admitted"].as_u64().unwrap() > 0,
            "{health:#}"
        );
    });
    // And another, which begins with the new ones.
    moves(SceneConfig {
        dataplane_extra: ["a", "b"].map(|node| authority.table(node)),
        multifd: 2,
        ..SceneConfig::default()
    });
}

#[test]
fn a_hypervisor_that_was_never_announced_is_carried() {
    let config = SceneConfig::default();
    let ground = Ground::new(config.shape);
    let dir = tempfile::tempdir().unwrap();
    let (to_b, at_b) = (dir.path().join("to-b.sock"), dir.path().join("b.sock"));
    let source = format!(
        "[[passive]]\nlisten = \"{}\"\npeer = \"{}:{}\"\ntarget = \"vm\"\n",
        to_b.display(),
        ground.link.b,
        dwcp_lab::stack::DATA_PORT,
    );
    let target = format!(
        "[[incoming]]\ntarget = \"vm\"\nconnect = \"{}\"\n",
        at_b.display()
    );
    let config = SceneConfig {
        dataplane_extra: [source, target],
        ..config
    };
    let mut scene = Scene::new(&ground, config);
    let at_b = format!("unix:{}", at_b.display());
    scene
        .destination
        .execute("migrate-incoming", json!({ "uri": at_b }))
        .unwrap();
    scene
        .source
        .execute(
            "migrate",
            json!({ "uri": format!("unix:{}", to_b.display()) }),
        )
        .unwrap();
    let state = scene.source.qmp().wait_migration(PATIENCE).unwrap();
    assert_eq!(state["status"], "completed", "{state}");
    let verdict = scene.destination.verify().unwrap();
    assert!(verdict.ok, "{}", verdict.line);
    assert_eq!(scene.source.ticks().doubled(), 0);
}

/// What each node tells of a migration is what a rollout is judged by: v3's work counts for it, and a node with v1 alone
/// is shown as such and goes on moving guests.
#[test]
fn a_rollout_is_judged_by_the_migrations_of_its_nodes() {
    for (versions, part, samples) in [((3, 3), "in_share", 1), ((1, 3), "v1_only", 0)] {
        let ground = Ground::new(SceneConfig::default().shape);
        let config = SceneConfig {
            versions,
            ..SceneConfig::default()
        };
        let mut scene = Scene::new(&ground, config);
        let plan = json!({ "feature": "dwcp_v3_hde", "phases": [{ "percentage": 100 }] });
        let begun = poll_until(PATIENCE, || {
            let (status, made) = scene.a.api("POST", "/v1/rollouts", Some(&plan)).ok()?;
            (status == 201).then_some(made)
        });
        let path = format!("/v1/rollouts/{}", begun.unwrap()["id"].as_str().unwrap());
        let id = scene.start();
        scene.check_arrived(&id);
        let judged = poll_until(PATIENCE, || {
            let (_, shown) = scene.a.api("GET", &path, None).ok()?;
            let all = shown["verdict"]["judgements"].as_array()?;
            let of = |criterion: &str| {
                let found = all.iter().find(|it| it["criterion"] == criterion)?;
                Some(found.clone())
            };
            let (live, errors) = (of("live_success")?, of("error_rate")?);
            let counted = live["samples"] == samples && errors["samples"] == samples;
            counted.then_some((shown.clone(), live))
        });
        let (shown, live) =
            judged.unwrap_or_else(|| panic!("{:?}", scene.a.api("GET", &path, None)));
        assert_eq!(shown["nodes"][0]["part"], part);
        assert_eq!(shown["stage"], "running", "{shown}");
        if samples == 1 {
            assert_eq!(
                (&live["value"], &live["standing"]),
                (&json!(1.0), &json!("missing"))
            );
            assert!(
                live["low"].as_f64().unwrap() < 0.3,
                "one says little: {live}"
            );
        }
    }
}
