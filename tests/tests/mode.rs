//! The mode of a session follows its path while a guest moves, and an operator's word before that.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use dwcp_lab::guest::UNLIMITED_BANDWIDTH;
use dwcp_lab::link::Shape;
use dwcp_lab::watchdog::poll_until;
use dwcp_tests::scene::{PATIENCE, Scene, SceneConfig};
use serde_json::{Value, json};

/// No limit but the machine's, hardly any delay.
fn datacenter() -> Shape {
    Shape::new(0.0, 0.1, 0.0)
}

/// Less than the guest of [`endless`] changes, bytes a second.
const HYPERVISOR_BYTES_PER_S: u64 = 150_000_000;

/// A guest that changes faster than its hypervisor may send, so that its migration goes on until it is let end: see
/// [`keep_changing`].
fn endless() -> SceneConfig {
    SceneConfig {
        shape: datacenter(),
        guest_mb: 256,
        dirty_pages_per_s: 100_000,
        downtime_limit_ms: 1,
        ..SceneConfig::default()
    }
}

/// What the source knows of its peer.
fn peer(scene: &Scene<'_>) -> Value {
    let path = format!("/v1/modes/{}", scene.ground.link.b);
    scene.a.api("GET", &path, None).unwrap().1
}

/// Has the guest change more than is sent, and widely, so that no round is short.
fn keep_changing(scene: &mut Scene<'_>) {
    scene.source.set_hot_pages(40_000).unwrap();
    let limit = json!({ "max-bandwidth": HYPERVISOR_BYTES_PER_S });
    scene
        .source
        .execute("migrate-set-parameters", limit)
        .unwrap();
}

/// Waits until the session is in this mode.
fn wait_mode(scene: &Scene<'_>, mode: &str) -> Value {
    let mut last = Value::Null;
    poll_until(PATIENCE, || {
        last = peer(scene);
        (last["sessions"][0]["mode"] == mode).then(|| last.clone())
    })
    .unwrap_or_else(|| panic!("the mode {mode} never came; last: {last:#}"))
}

/// Lets the guest come to rest and arrive.
fn arrive(scene: &mut Scene<'_>, id: &str) -> Value {
    scene.source.set_rate(0).unwrap();
    let limit = json!({ "downtime-limit": 2_000, "max-bandwidth": UNLIMITED_BANDWIDTH });
    scene
        .source
        .execute("migrate-set-parameters", limit)
        .unwrap();
    scene.check_arrived(id)
}

#[test]
fn the_mode_follows_a_line_that_changes_under_a_migration_and_nothing_is_lost() {
    Scene::migrating(endless(), |scene, id| {
        keep_changing(scene);
        for (shape, mode) in [
            (datacenter(), "datacenter"),
            (Shape::new(200.0, 40.0, 0.0), "internet"),
            (Shape::new(0.0, 12.5, 0.0), "hybrid"),
            (datacenter(), "datacenter"),
        ] {
            scene.ground.link.set(shape, shape);
            let view = wait_mode(scene, mode);
            assert_eq!(
                (&view["mode"], &view["by"]),
                (&json!(mode), &json!("measured")),
                "{view:#}"
            );
            assert!(
                view["reason"].as_str().unwrap().contains("round trip"),
                "{view:#}"
            );
            scene.wait(id, mode, |view| {
                view["mode"] == mode && view["state"] == "active"
            });
            if mode == "internet" {
                // Lanes that believed the path to be the near one that it was make room for fresh ones.
                scene.wait(id, "fresh lanes", |view| {
                    view["lanes"]["replaced"].as_u64() > Some(0)
                });
            }
        }
        let view = arrive(scene, id);
        assert_eq!(view["mode"], "datacenter");
        let metrics = scene.a.api("GET", "/v1/modes", None).unwrap().1;
        let changes = metrics["peers"][0]["changes"].as_array().unwrap();
        let modes: Vec<&str> = changes
            .iter()
            .map(|change| change["mode"].as_str().unwrap())
            .collect();
        assert_eq!(modes, ["datacenter", "hybrid", "internet", "datacenter"]);
    });
}

#[test]
fn an_operators_word_counts_before_what_is_measured_until_it_is_taken_back() {
    Scene::migrating(endless(), |scene, id| {
        keep_changing(scene);
        wait_mode(scene, "datacenter");
        let address = scene.ground.link.b.to_string();
        let run = |arguments: &[&str]| {
            let output = scene.a.ctl(arguments).unwrap().output().unwrap();
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        run(&["mode", "set", "internet", "--peer", &address]);
        let view = wait_mode(scene, "internet");
        assert_eq!(view["by"], "override_of_peer", "{view:#}");
        assert_eq!(view["measured"]["mode"], "datacenter", "{view:#}");
        assert!(run(&["mode"]).contains("measured: datacenter"));
        run(&["mode", "auto", "--peer", &address]);
        assert_eq!(wait_mode(scene, "datacenter")["by"], "measured");
        arrive(scene, id);
    });
}
