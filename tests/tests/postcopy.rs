//! Post-copy over a thin and far line: the guest runs at the destination while its memory follows, and what
//! breaks meanwhile costs time alone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use dwcp_lab::link::Shape;
use dwcp_lab::pki::Authority;
use dwcp_lab::watchdog::poll_until;
use dwcp_tests::scene::{PATIENCE, Scene, SceneConfig};
use serde_json::{Value, json};

/// Most of the memory is still at the source when the guest goes.
fn early() -> SceneConfig {
    SceneConfig {
        shape: Shape::new(200.0, 40.0, 0.0),
        postcopy: json!({ "after_ms": 300 }),
        ..SceneConfig::default()
    }
}

/// The same over a line on which that memory takes so long that the middle of it can be hit.
fn slow() -> SceneConfig {
    SceneConfig {
        shape: Shape::new(50.0, 40.0, 0.0),
        ..early()
    }
}

fn word(guest: &mut dwcp_lab::guest::Guest) -> String {
    let state = guest.qmp().query_migrate().unwrap();
    state["status"].as_str().unwrap_or_default().to_owned()
}

/// Waits until the guest runs at the destination with part of its memory.
fn wait_postcopy(scene: &mut Scene<'_>) {
    let runs = poll_until(PATIENCE, || {
        let here = scene.destination.qmp().query_status().ok()? == "running";
        (here && word(&mut scene.source) == "postcopy-active").then_some(())
    });
    assert!(runs.is_some(), "the guest never ran in post-copy");
}

/// Both hypervisors wait, and neither has the guest for itself.
fn wait_paused(scene: &mut Scene<'_>, id: &str) {
    scene.wait(id, "a pause", |view| view["state"] == "postcopy_paused");
    let source = &mut scene.source;
    let paused = poll_until(PATIENCE, || {
        (word(source) == "postcopy-paused").then_some(())
    });
    assert!(paused.is_some(), "{}", word(source));
    // Its monitor may wait for a page of the guest, so its control plane is asked, which hears of events.
    let path = format!("/v1/incoming/{id}");
    let paused = poll_until(PATIENCE, || {
        let view = scene.b.api("GET", &path, None).ok()?.1;
        (view["state"] == "postcopy_paused" && view["guest"] == "here_in_part").then_some(())
    });
    assert!(paused.is_some(), "{:?}", scene.b.api("GET", &path, None));
    let source = scene.source.qmp().query_status().unwrap();
    assert_eq!(source, "finish-migrate", "the source runs the guest again");
}

fn requests(scene: &mut Scene<'_>) -> u64 {
    let state = scene.source.qmp().query_migrate().unwrap();
    state["ram"]["postcopy-requests"].as_u64().unwrap_or(0)
}

fn capability(guest: &mut dwcp_lab::guest::Guest, name: &str) -> bool {
    let list = guest
        .execute("query-migrate-capabilities", Value::Null)
        .unwrap();
    let list = list.as_array().unwrap();
    list.iter()
        .any(|entry| entry["capability"] == name && entry["state"] == true)
}

#[test]
fn a_guest_moves_by_postcopy_with_pages_that_it_waits_for_on_their_own_way() {
    Scene::migrating(early(), |scene, id| {
        let view = scene.wait(id, "post-copy", |view| view["state"] == "postcopy_active");
        assert_eq!(view["guest"], "destination", "{view:#}");
        for guest in [&mut scene.source, &mut scene.destination] {
            assert!(capability(guest, "postcopy-ram") && capability(guest, "postcopy-preempt"));
        }
        let (status, problem) = scene
            .a
            .api("DELETE", &format!("/v1/migrations/{id}"), None)
            .unwrap();
        assert_eq!(
            (status, &problem["type"]),
            (409, &json!("urn:dwcp:problem:too_late")),
            "{problem}"
        );
        scene.check_arrived(id);
        assert!(requests(scene) > 0, "the guest never asked for a page");
    });
}

#[test]
fn a_guest_moves_by_postcopy_after_the_first_pass_in_v1_too() {
    for version in ["v1", "v3"] {
        let config = SceneConfig {
            postcopy: json!("after_first_pass"),
            dirty_pages_per_s: 5000,
            max_version: version,
            ..early()
        };
        Scene::migrating(config, |scene, id| {
            scene.check_arrived(id);
            let seen = scene.source.qmp().query_migrate().unwrap();
            assert!(
                seen["ram"]["dirty-sync-count"].as_u64().unwrap() >= 2,
                "{seen}"
            );
        });
    }
}

#[test]
fn a_link_cut_for_less_than_the_limit_needs_no_recovery() {
    Scene::migrating(slow(), |scene, id| {
        wait_postcopy(scene);
        scene.ground.link.cut();
        std::thread::sleep(Duration::from_secs(5));
        assert_eq!(word(&mut scene.source), "postcopy-active");
        scene.ground.link.restore();
        scene.check_arrived(id);
    });
}

#[test]
fn a_link_cut_for_longer_than_the_limit_is_recovered_when_it_is_back() {
    let config = SceneConfig {
        resume_limit_ms: 5_000,
        ..slow()
    };
    Scene::migrating(config, |scene, id| {
        wait_postcopy(scene);
        scene.ground.link.cut();
        wait_paused(scene, id);
        std::thread::sleep(Duration::from_secs(3));
        scene.ground.link.restore();
        scene.check_arrived(id);
    });
}

#[test]
fn a_recovery_waits_for_the_order_if_it_is_to() {
    let config = SceneConfig {
        resume_limit_ms: 5_000,
        auto_recover: false,
        ..slow()
    };
    Scene::migrating(config, |scene, id| {
        wait_postcopy(scene);
        let path = format!("/v1/migrations/{id}/recover");
        let (status, problem) = scene.a.api("POST", &path, None).unwrap();
        assert_eq!(
            (status, &problem["type"]),
            (409, &json!("urn:dwcp:problem:not_paused")),
            "{problem}"
        );
        scene.ground.link.cut();
        wait_paused(scene, id);
        scene.ground.link.restore();
        std::thread::sleep(Duration::from_secs(3));
        assert_eq!(scene.view(id)["state"], "postcopy_paused");
        let ended = scene.a.ctl(&["recover", id]).unwrap().output().unwrap();
        assert!(ended.status.success(), "{ended:?}");
        scene.check_arrived(id);
    });
}

#[test]
fn a_dead_data_plane_in_postcopy_is_recovered_over_a_new_one() {
    for at_source in [true, false] {
        Scene::migrating(slow(), |scene, id| {
            wait_postcopy(scene);
            let node = if at_source {
                &mut scene.a
            } else {
                &mut scene.b
            };
            node.kill_dataplane().unwrap();
            if at_source {
                scene.wait(id, "a pause", |view| view["state"] == "postcopy_paused");
            }
            assert_eq!(
                scene.source.qmp().query_status().unwrap(),
                "finish-migrate",
                "the source runs the guest again"
            );
            let node = if at_source {
                &mut scene.a
            } else {
                &mut scene.b
            };
            node.restart_dataplane().unwrap();
            scene.check_arrived(id);
        });
    }
}

#[test]
fn dead_control_planes_in_postcopy_stop_nothing() {
    Scene::migrating(slow(), |scene, id| {
        wait_postcopy(scene);
        scene.a.kill_controlplane().unwrap();
        scene.b.kill_controlplane().unwrap();
        std::thread::sleep(Duration::from_secs(1));
        scene.a.restart_controlplane().unwrap();
        scene.b.restart_controlplane().unwrap();
        scene.check_arrived(id);
    });
}

/// Encrypted, and the encoding changes with the mode while pages are waited for: both are nothing to the guest.
#[test]
fn a_postcopy_over_tls_goes_on_through_changes_of_the_mode() {
    let authority = Authority::new(&["a", "b"]).unwrap();
    let config = SceneConfig {
        dataplane_extra: ["a", "b"].map(|node| authority.table(node)),
        ..slow()
    };
    Scene::migrating(config, |scene, id| {
        wait_postcopy(scene);
        let path = format!("/v1/modes/{}", scene.ground.link.b);
        for mode in ["datacenter", "internet", "hybrid"] {
            let body = json!({ "mode": mode });
            let (status, view) = scene.a.api("PUT", &path, Some(&body)).unwrap();
            assert_eq!(status, 200, "{view}");
            scene.wait(id, mode, |view| {
                view["mode"] == mode && view["state"] == "postcopy_active"
            });
        }
        scene.check_arrived(id);
        assert!(requests(scene) > 0, "the guest never asked for a page");
    });
}
