//! Real guests move over lanes that pass the kernel by: DPDK ports on shared memory and on an interface that
//! AF_XDP took over.
#![cfg(feature = "dpdk")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use dwcp_lab::link::Shape;
use dwcp_lab::netns::Cable;
use dwcp_tests::scene::{Ground, Scene, SceneConfig};

/// A line for the handshakes; the guest does not cross it.
fn line() -> Shape {
    Shape::new(400.0, 1.0, 0.0)
}

/// The configuration of both nodes: `device` for each, addresses on a segment of their own.
fn over(devices: [String; 2], mtu_bytes: u16) -> [String; 2] {
    let [a, b] = devices;
    let table = |device: &str, host: u8| {
        format!(
            "driver = \"dpdk\"\n[dpdk]\ndevice = \"{device}\"\naddress = \"10.77.0.{host}/24\"\n\
             mtu_bytes = {mtu_bytes}\nmemory_mib = 128\n"
        )
    };
    [table(&a, 1), table(&b, 2)]
}

fn moves(ground: &Ground, dataplane_extra: [String; 2]) {
    let config = SceneConfig {
        shape: line(),
        dataplane_extra,
        ..SceneConfig::default()
    };
    let mut scene = Scene::new(ground, config);
    let id = scene.start();
    let view = scene.check_arrived(&id);
    assert_eq!(view["lanes"]["driver"], "dpdk", "{view:#}");
    assert_eq!(view["lanes"]["fallbacks"], 0, "{view:#}");
    assert_eq!(view["version"], "v3");
}

#[test]
fn a_guest_moves_over_memif() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("memif.sock");
    let device = |role| format!("memif-{role}:{}", socket.display());
    moves(
        &Ground::new(line()),
        over([device("client"), device("server")], 4160),
    );
}

#[test]
fn a_guest_moves_over_af_xdp() {
    let ground = Ground::new(line());
    let _cable = Cable::lan(&ground.a, &ground.b, 3).unwrap();
    let device = || "af_xdp:lan3".to_owned();
    moves(&ground, over([device(), device()], 1500));
}
