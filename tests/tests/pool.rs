//! The second migration to a peer finds its lanes ready: made, proven and warm; and where they turn out dead, it goes
//! on as the first did.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use dwcp_lab::link::Shape;
use dwcp_lab::watchdog::poll_until;
use dwcp_tests::pair::{Pair, PairOptions};
use dwcp_tests::plane::Plane;
use dwcp_tests::scene::{Ground, PATIENCE, Scene, SceneConfig};
use dwcp_tests::streams::{carry, pages};

/// Packets that a warm connection may have on the way.
const WARM_PACKETS: u64 = 128;

fn wait_ready(plane: &Plane, wanted: u64) {
    let ready = || plane.door().pool_ready.get();
    let found = poll_until(Duration::from_secs(30), || {
        (ready() == wanted).then_some(())
    });
    assert!(found.is_some(), "{} are ready, not {wanted}", ready());
}

#[test]
fn the_second_of_two_streams_goes_over_lanes_that_were_ready() {
    let pair = Pair::start(PairOptions::default());
    let stream = pages(1, 2_000);
    // What carries a stream attaches by itself, and a data plane lets one in at a time.
    let source = || Plane::attach(&pair.source_control());
    let figures = || {
        let source = source();
        let door = source.door();
        (door.pool_hits_total.get(), door.pool_misses_total.get())
    };
    let _ = carry(&pair, &stream);
    let (hits, misses) = figures();
    assert_eq!(hits, 0);
    assert!(misses > 0, "no lane was looked for");
    wait_ready(&source(), 16);
    let _ = carry(&pair, &stream);
    assert_eq!(figures(), (misses, misses), "a lane was dialled");
    pair.stop();
}

/// A man between the two ends every connection; those that the pool makes anew he lets pass.
#[test]
fn connections_that_were_cut_are_made_anew() {
    let options = PairOptions {
        mitm: true,
        ..PairOptions::default()
    };
    let pair = Pair::start(options);
    let source = || Plane::attach(&pair.source_control());
    let stream = pages(2, 1_000);
    let _ = carry(&pair, &stream);
    wait_ready(&source(), 16);
    pair.mitm().cut();
    let _ = carry(&pair, &stream);
    wait_ready(&source(), 16);
    pair.stop();
}

/// The window of each connection to the peer, in packets, as the kernel of the first host tells it.
fn windows(scene: &Scene<'_>) -> Vec<u64> {
    let to = format!("dport = :{}", dwcp_lab::stack::DATA_PORT);
    let mut told = scene.ground.a.command("ss");
    let told = told.args(["-tinH", "state", "established", &to]);
    let told = String::from_utf8(told.output().unwrap().stdout).unwrap();
    let words = told.split_whitespace();
    words
        .filter_map(|word| word.strip_prefix("cwnd:")?.parse().ok())
        .collect()
}

/// Lanes of the first host that found a connection ready.
fn hits(scene: &Scene<'_>) -> u64 {
    let (_, health) = scene.a.api("GET", "/v1/health/detailed", None).unwrap();
    health["handshakes"]["pool_hits"].as_u64().unwrap()
}

/// Two guests one after the other over a far line, and a third after the peer's data plane was started anew.
#[test]
fn guests_move_over_warm_lanes_and_over_fresh_ones_when_the_peer_was_restarted() {
    let config = SceneConfig {
        shape: Shape::new(200.0, 20.0, 0.0),
        ..SceneConfig::default()
    };
    let ground = Ground::new(config.shape);
    let mut scene = Scene::new(&ground, config);
    let id = scene.start();
    scene.check_arrived(&id);
    let warm = poll_until(PATIENCE, || {
        let windows = windows(&scene);
        let warm = windows.iter().filter(|window| **window >= WARM_PACKETS);
        (warm.count() >= 16).then_some(())
    });
    assert!(warm.is_some(), "not warm: {:?}", windows(&scene));
    for restarts in [false, true] {
        if restarts {
            scene.b.kill_dataplane().unwrap();
            scene.b.restart_dataplane().unwrap();
        }
        let before = hits(&scene);
        (scene.source, scene.destination) = scene.more_guests();
        let id = scene.start();
        scene.check_arrived(&id);
        if !restarts {
            assert!(hits(&scene) >= before + 16);
        }
    }
}
