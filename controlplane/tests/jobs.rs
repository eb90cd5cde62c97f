//! Migrations between real hypervisors, driven by two control planes over the stand-in data plane.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[allow(dead_code, reason = "each test file uses its part of the kit")]
mod jobs_kit;

use std::time::Duration;

use dwcp_api::command::{Command, SessionLimits};
use dwcp_api::text::Text;
use dwcp_api::{SessionId, Version};
use dwcp_controlplane::host::Host;
use dwcp_controlplane::jobs::request::MigrationOptions;
use dwcp_controlplane::jobs::settings::{End, capabilities, parameters, verify};
use dwcp_controlplane::jobs::view::{GuestSide, MigrationState};
use dwcp_controlplane::qmp::{MigrationPhase, QmpCommand, QmpError};
use jobs_kit::{COMPLETED, ControlPlane, DataPlane, Qemu, Scene, call, releases};
use reqwest::Method;
use serde_json::json;

/// Not a test: the way into the process that stands in for the data plane.
#[test]
fn fake_data_plane() {
    jobs_kit::fake_entry();
}

/// Two hypervisors directly, by our QMP client alone: every command against every release.
#[tokio::test]
async fn qmp_drives_a_direct_migration() {
    for release in releases() {
        let dir = tempfile::tempdir().unwrap();
        let ends = [
            Qemu::start(&release, dir.path(), "a", false),
            Qemu::start(&release, dir.path(), "b", true),
        ];
        let options = MigrationOptions {
            multifd_channels: 3,
            ..MigrationOptions::default()
        };
        let mut monitors = vec![];
        for (qemu, end) in ends.iter().zip([End::Source, End::Destination]) {
            let qmp = qemu.qmp().await;
            let listed = qmp
                .execute(QmpCommand::QueryMigrateCapabilities)
                .await
                .unwrap();
            let switch = capabilities(&listed, &options, false).unwrap();
            assert!(switch.contains(&("return-path", true)) && switch.contains(&("multifd", true)));
            qmp.execute(QmpCommand::MigrateSetCapabilities(switch))
                .await
                .unwrap();
            let listed = qmp
                .execute(QmpCommand::QueryMigrateCapabilities)
                .await
                .unwrap();
            assert_eq!(capabilities(&listed, &options, false), Ok(vec![]));
            let listed = qmp
                .execute(QmpCommand::QueryMigrateParameters)
                .await
                .unwrap();
            let set = parameters(&listed, &options, end);
            qmp.execute(QmpCommand::MigrateSetParameters(set.clone()))
                .await
                .unwrap();
            let listed = qmp
                .execute(QmpCommand::QueryMigrateParameters)
                .await
                .unwrap();
            verify(&listed, &set).unwrap();
            monitors.push(qmp);
        }
        let [source, destination] = &monitors[..] else {
            panic!()
        };
        assert!(source.run_state().await.unwrap().running);
        assert!(destination.run_state().await.unwrap().is_incoming());
        assert_eq!(
            source.migration().await.unwrap().phase(),
            MigrationPhase::None
        );
        let mut came = destination.events();
        let path = dir.path().join("m");
        destination
            .execute(QmpCommand::MigrateIncoming(path.clone()))
            .await
            .unwrap();
        let twice = destination
            .execute(QmpCommand::MigrateIncoming(path.clone()))
            .await;
        assert!(matches!(twice, Err(QmpError::Refused { .. })));
        source.execute(QmpCommand::Migrate(path)).await.unwrap();
        while came.recv().await.unwrap().name != "RESUME" {}
        let info = loop {
            let info = source.migration().await.unwrap();
            if info.phase() == MigrationPhase::Completed {
                break info;
            }
            assert_ne!(info.phase(), MigrationPhase::Failed, "{info:?}");
        };
        assert!(info.downtime_ms.is_some() && info.ram_total_bytes.unwrap() >= 64 << 20);
        assert!(source.run_state().await.unwrap().is_handed_over());
        assert!(destination.run_state().await.unwrap().running);
        let _ = source.execute(QmpCommand::Quit).await;
        source.closed().await;
    }
}

#[tokio::test]
async fn a_guest_moves_and_nothing_is_left() {
    for release in releases() {
        for channels in [0, 2] {
            let mut scene = Scene::new(&release).await;
            let id = scene.start(&json!({ "multifd_channels": channels })).await;
            let view = scene.controls[0].ended(&id).await;
            assert_eq!(
                (view.state, view.guest),
                (COMPLETED, GuestSide::Destination),
                "{view:#?}"
            );
            assert!(view.failure.is_none() && view.downtime_ms.is_some());
            assert!(
                view.bytes.hypervisor > 100_000,
                "the last figures are kept: {view:#?}"
            );
            assert!(scene.destination.state().await.running);
            assert!(scene.source.state().await.is_handed_over());
            assert!(!scene.source.has_ended(), "left for its owner");
            scene.is_clean().await;
        }
    }
}

#[tokio::test]
async fn the_same_guest_is_not_moved_twice_at_once() {
    let release = &releases()[0];
    let mut scene = Scene::new(release).await;
    scene.planes[0].order("swallow forward");
    let id = scene.start(&json!({ "quit_source": true })).await;
    let url = format!("{}/v1/migrations", scene.controls[0].api);
    let (status, problem) = call(Method::POST, &url, Some(scene.request(&json!({})))).await;
    assert_eq!((status, &problem["type"]), (409, &json!("hypervisor_busy")));
    let elsewhere = json!({ "vm": { "qmp": "/etc/passwd" },
        "destination": { "api": "http://127.0.0.1:1", "qmp": "/x" } });
    let (status, problem) = call(Method::POST, &url, Some(elsewhere)).await;
    assert_eq!((status, &problem["type"]), (403, &json!("qmp_forbidden")));
    let (status, _) = call(Method::DELETE, &format!("{url}/{id}"), None).await;
    assert_eq!(status, 200);
    scene.controls[0].ended(&id).await;
    scene.is_clean().await;
}

#[tokio::test]
async fn a_cancelled_guest_goes_on_at_the_source() {
    for release in releases() {
        let mut scene = Scene::new(&release).await;
        // Its stream never arrives whole, so it cannot end before it is cancelled.
        scene.planes[0].order("swallow forward");
        let id = scene.start(&json!({})).await;
        scene.controls[0]
            .until(&id, |view| {
                view.state == MigrationState::Switchover || view.progress.is_some()
            })
            .await;
        let url = format!("{}/v1/migrations/{id}", scene.controls[0].api);
        let limit = json!({ "bandwidth_limit_bytes_per_s": 5 });
        let (status, view) = call(Method::PATCH, &url, Some(limit)).await;
        assert_eq!(
            (status, &view["options"]["bandwidth_limit_bytes_per_s"]),
            (200, &json!(5))
        );
        let moved = json!({ "dataplane": "10.0.0.3:4790" });
        let (status, view) = call(Method::PATCH, &url, Some(moved)).await;
        assert_eq!(
            (status, &view["destination"]["dataplane"]),
            (200, &json!("10.0.0.3:4790"))
        );
        let nowhere = json!({ "dataplane": "elsewhere" });
        let (status, problem) = call(Method::PATCH, &url, Some(nowhere)).await;
        assert_eq!((status, &problem["type"]), (400, &json!("bad_request")));
        let (status, view) = call(Method::DELETE, &url, None).await;
        assert_eq!(status, 200, "{view}");
        let view = scene.controls[0].ended(&id).await;
        assert_eq!(
            (view.state, view.guest),
            (MigrationState::Cancelled, GuestSide::Source)
        );
        assert!(scene.source.state().await.running);
        assert!(
            scene.destination.has_ended(),
            "a destination that never ran is ended"
        );
        scene.is_clean().await;
        let (status, problem) = call(Method::DELETE, &url, None).await;
        assert_eq!((status, &problem["type"]), (409, &json!("already_ended")));
    }
}

#[tokio::test]
async fn a_destination_that_refuses_leaves_the_source_running() {
    let release = &releases()[0];
    let mut scene = Scene::new(release).await;
    scene.destination.kill();
    let id = scene.start(&json!({})).await;
    let view = scene.controls[0].ended(&id).await;
    assert_eq!(
        (view.state, view.guest),
        (MigrationState::Failed, GuestSide::Source)
    );
    let failure = view.failure.unwrap();
    assert_eq!(failure.code, "peer_refused");
    assert!(failure.cure.contains("-qmp"), "{failure:?}");
    assert!(scene.source.state().await.running);
    scene.is_clean().await;
    // The hypervisor is free for the next one.
    scene.destination = Qemu::start(release, &scene.host(1), "vm2", true);
    let id = scene.start(&json!({})).await;
    assert_eq!(scene.controls[0].ended(&id).await.state, COMPLETED);
}

#[tokio::test]
async fn a_destination_without_the_right_to_postcopy_is_told_so() {
    let release = &releases()[0];
    let mut scene = Scene::new(release).await;
    scene.destination.kill();
    let more = ["-run-with", "user=nobody"];
    scene.destination = Qemu::start_with(release, &scene.host(1), "vm2", true, &more);
    let id = scene
        .start(&json!({ "postcopy": "after_first_pass" }))
        .await;
    let view = scene.controls[0].ended(&id).await;
    assert_eq!(
        (view.state, view.guest),
        (MigrationState::Failed, GuestSide::Source)
    );
    let failure = view.failure.unwrap();
    assert!(failure.detail.contains("serfaultfd"), "{failure:?}");
    assert!(failure.cure.contains("CAP_SYS_PTRACE"), "{failure:?}");
    assert!(scene.source.state().await.running);
}

/// Which side has the guest when the hand-over is cut, by where it is cut.
#[derive(Clone, Copy, PartialEq)]
enum Cut {
    /// The destination has only part: the source keeps the guest.
    Forward,
    /// The destination has everything, the source does not know: the guest moved.
    Return,
}

async fn handed_over(scene: &mut Scene, cut: Cut) -> String {
    scene.planes[0].order(if cut == Cut::Forward {
        "swallow forward"
    } else {
        "swallow return"
    });
    let id = scene.start(&json!({})).await;
    // The source's guest stands still and waits for the destination's word.
    scene.controls[0]
        .until(&id, |view| view.state == MigrationState::Switchover)
        .await;
    if cut == Cut::Return {
        let until = format!("{}/v1/incoming/{id}", scene.controls[1].api);
        while call(Method::GET, &until, None).await.1["guest"] != json!("here") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    id
}

async fn exactly_one(scene: &mut Scene, id: &str, cut: Cut) {
    let view = scene.controls[0].ended(id).await;
    if cut == Cut::Forward {
        assert_eq!(
            (view.state, view.guest),
            (MigrationState::Failed, GuestSide::Source),
            "{view:#?}"
        );
        assert!(scene.source.state().await.running);
        assert!(scene.destination.has_ended());
    } else {
        assert_eq!(
            (view.state, view.guest),
            (COMPLETED, GuestSide::Destination),
            "{view:#?}"
        );
        assert!(scene.destination.state().await.running);
        assert!(
            scene.source.has_ended(),
            "ended before its connections were let go"
        );
    }
}

#[tokio::test]
async fn an_undecided_hand_over_is_decided_by_asking() {
    for cut in [Cut::Forward, Cut::Return] {
        let mut scene = Scene::new(&releases()[0]).await;
        let id = handed_over(&mut scene, cut).await;
        scene.planes[0].order("undecided");
        exactly_one(&mut scene, &id, cut).await;
        scene.is_clean().await;
    }
}

/// The destination says that it never ran; only then does the source's data plane call it undecided.
#[tokio::test]
async fn a_cancel_during_the_hand_over_is_carried_out_if_the_destination_never_ran() {
    let mut scene = Scene::new(&releases()[0]).await;
    let id = handed_over(&mut scene, Cut::Forward).await;
    scene.controls[0]
        .until(&id, |view| view.state == MigrationState::Switchover)
        .await;
    let there = format!("{}/v1/incoming/{id}", scene.controls[1].api);
    assert_eq!(call(Method::DELETE, &there, None).await.0, 200);
    scene.planes[0].order("undecided");
    let url = format!("{}/v1/migrations/{id}", scene.controls[0].api);
    // Who comes first, the order or the task's own look, does not matter.
    let (status, answer) = call(Method::DELETE, &url, None).await;
    assert!(
        status == 200 || answer["type"] == json!("already_ended"),
        "{status} {answer}"
    );
    let view = scene.controls[0].ended(&id).await;
    assert_eq!(view.guest, GuestSide::Source, "{view:#?}");
    assert!(scene.source.state().await.running && scene.destination.has_ended());
    scene.is_clean().await;
}

#[tokio::test]
async fn a_guest_that_has_moved_is_not_cancelled() {
    let mut scene = Scene::new(&releases()[0]).await;
    let id = handed_over(&mut scene, Cut::Return).await;
    let url = format!("{}/v1/migrations/{id}", scene.controls[0].api);
    let (status, problem) = call(Method::DELETE, &url, None).await;
    assert_eq!((status, &problem["type"]), (409, &json!("too_late")));
    let there = format!("{}/v1/incoming/{id}", scene.controls[1].api);
    let (status, problem) = call(Method::DELETE, &there, None).await;
    assert_eq!((status, &problem["type"]), (409, &json!("too_late")));
    assert!(scene.destination.state().await.running);
    scene.planes[0].order("undecided");
    exactly_one(&mut scene, &id, Cut::Return).await;
}

#[tokio::test]
async fn a_session_left_over_by_a_dead_control_plane_is_swept() {
    let mut scene = Scene::new(&releases()[0]).await;
    let id = scene.start(&json!({})).await;
    scene.controls[0].ended(&id).await;
    scene.is_clean().await;
    scene.controls[0].stop();
    {
        // As if the control plane had died between the end of the migration and its clean-up.
        let (host, task) = Host::spawn(scene.host(0).join("dp.sock"));
        let mut changes = host.status_changes();
        changes
            .wait_for(|status| status.instance().is_some())
            .await
            .unwrap();
        let session = SessionId::parse(&id).unwrap();
        host.command(Command::OpenSource {
            session,
            listen: Text::new(scene.host(0).join("left").to_str().unwrap()).unwrap(),
            peer: Text::clipped("127.0.0.1:1"),
            peer_node: Text::EMPTY,
            max_version: Version::V3,
            limits: SessionLimits::default(),
        })
        .await
        .unwrap();
        host.command(Command::Cancel { session }).await.unwrap();
        assert_eq!(host.sessions().unwrap().len(), 1);
        task.abort();
        let _ = task.await;
    }
    scene.controls[0] = ControlPlane::start(&scene.host(0), "127.0.0.1:0".parse().unwrap());
    scene.controls[0].attached().await;
    scene.is_clean().await;
    assert_eq!(
        scene.controls[0].get(&id).await.state,
        COMPLETED,
        "its result is kept"
    );
}

#[tokio::test]
async fn the_death_of_the_source_data_plane_makes_no_second_guest() {
    for release in releases() {
        for cut in [Cut::Forward, Cut::Return] {
            let mut scene = Scene::new(&release).await;
            let id = handed_over(&mut scene, cut).await;
            scene.planes[0].kill();
            exactly_one(&mut scene, &id, cut).await;
        }
    }
}

#[tokio::test]
async fn the_death_of_the_source_data_plane_before_the_hand_over_costs_nothing() {
    let mut scene = Scene::new(&releases()[0]).await;
    scene.planes[0].order("stall");
    let id = scene.start(&json!({})).await;
    scene.controls[0]
        .until(&id, |view| view.progress.is_some())
        .await;
    scene.planes[0].kill();
    let view = scene.controls[0].ended(&id).await;
    assert_eq!(view.guest, GuestSide::Source);
    assert_eq!(view.failure.unwrap().code, "data_plane_gone");
    assert!(scene.source.state().await.running);
    // A new data plane is found, and the next migration goes through it.
    scene.planes[0] = DataPlane::start(&scene.host(0).join("dp.sock"));
    scene.controls[0].attached().await;
    scene.destination = Qemu::start(&releases()[0], &scene.host(1), "vm2", true);
    let id = scene.start(&json!({})).await;
    assert_eq!(scene.controls[0].ended(&id).await.state, COMPLETED);
    scene.is_clean().await;
}

#[tokio::test]
async fn the_death_of_the_destination_data_plane_fails_closed() {
    let mut scene = Scene::new(&releases()[0]).await;
    let id = handed_over(&mut scene, Cut::Forward).await;
    scene.planes[1].kill();
    exactly_one(&mut scene, &id, Cut::Forward).await;
}

#[tokio::test]
async fn while_the_destination_is_silent_both_are_held() {
    for cut in [Cut::Forward, Cut::Return] {
        let mut scene = Scene::new(&releases()[0]).await;
        let id = handed_over(&mut scene, cut).await;
        let address = scene.controls[1].address();
        scene.controls[1].stop();
        scene.planes[0].order("undecided");
        let held = scene.controls[0]
            .until(&id, |view| {
                view.phase.contains("bring its control plane back")
            })
            .await;
        assert_eq!(
            (held.state, held.guest),
            (MigrationState::Undecided, GuestSide::Undecided)
        );
        let url = format!("{}/v1/migrations/{id}", scene.controls[0].api);
        let (status, problem) = call(Method::DELETE, &url, None).await;
        assert_eq!((status, &problem["type"]), (409, &json!("undecided")));
        scene.controls[1] = ControlPlane::start(&scene.host(1), address);
        exactly_one(&mut scene, &id, cut).await;
    }
}

#[tokio::test]
async fn a_restarted_control_plane_goes_on() {
    // Undisturbed: the migration ends without any control plane at its source.
    let mut scene = Scene::new(&releases()[0]).await;
    scene.planes[0].order("stall");
    let id = scene.start(&json!({})).await;
    scene.controls[0]
        .until(&id, |view| view.progress.is_some())
        .await;
    scene.controls[0].stop();
    scene.planes[0].order("flow");
    let any = "127.0.0.1:0".parse().unwrap();
    scene.controls[0] = ControlPlane::start(&scene.host(0), any);
    let view = scene.controls[0].ended(&id).await;
    assert_eq!(
        (view.state, view.guest),
        (COMPLETED, GuestSide::Destination),
        "{view:#?}"
    );
    scene.is_clean().await;

    // The data plane dies while there is no control plane: nobody holds the connections.
    for cut in [Cut::Forward, Cut::Return] {
        let mut scene = Scene::new(&releases()[0]).await;
        let id = handed_over(&mut scene, cut).await;
        scene.controls[0].stop();
        scene.planes[0].kill();
        scene.controls[0] = ControlPlane::start(&scene.host(0), any);
        let view = scene.controls[0].ended(&id).await;
        let (source, there) = (
            scene.source.state().await.running,
            !scene.destination.has_ended(),
        );
        assert_eq!(
            (source, there),
            (cut == Cut::Forward, cut == Cut::Return),
            "{view:#?}"
        );
    }
}

#[tokio::test]
async fn a_dead_source_hypervisor_is_told() {
    let mut scene = Scene::new(&releases()[0]).await;
    scene.planes[0].order("stall");
    let id = scene.start(&json!({})).await;
    scene.controls[0]
        .until(&id, |view| view.progress.is_some())
        .await;
    scene.source.kill();
    let view = scene.controls[0].ended(&id).await;
    assert_eq!(view.state, MigrationState::Failed);
    assert_eq!(view.failure.unwrap().code, "hypervisor_gone");
    assert!(scene.destination.has_ended());
    scene.is_clean().await;
}
