//! The page in a real browser, beside a guest that is really moved; `tests/page/setup.sh` installs what it needs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::Stdio;

use dwcp_lab::link::Shape;
use dwcp_lab::watchdog::Watchdog;
use dwcp_tests::scene::{PATIENCE, Scene, SceneConfig};
use serde_json::json;

#[test]
fn people_see_what_moves_and_turn_the_switch() {
    let config = SceneConfig {
        shape: Shape::new(100.0, 10.0, 0.0),
        dirty_pages_per_s: 100_000,
        downtime_limit_ms: 1,
        ..SceneConfig::default()
    };
    let pictures = Path::new(env!("CARGO_TARGET_TMPDIR")).join("page");
    std::fs::create_dir_all(&pictures).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("page/page.mjs");
    assert!(
        script.with_file_name("node_modules").is_dir(),
        "run tests/page/setup.sh first"
    );
    Scene::migrating(config, |scene, id| {
        scene.source.set_hot_pages(20_000).unwrap();
        scene.wait_underway(id);
        let token = |scope: &str| {
            let wanted = json!({ "name": format!("browser-{scope}"), "scope": scope });
            let (status, made) = scene.a.api("POST", "/v1/tokens", Some(&wanted)).unwrap();
            assert_eq!(status, 201, "{made}");
            made["token"].as_str().unwrap().to_owned()
        };
        let mut browser = scene
            .ground
            .a
            .command("node")
            .arg(&script)
            .args([scene.a.url(), token("admin"), token("read")])
            .arg(&pictures)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let _watchdog = Watchdog::new("the browser", 2 * PATIENCE);
        let mut answer = browser.stdin.take().unwrap();
        for line in BufReader::new(browser.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            eprintln!("{line}");
            match line.as_str() {
                "ask calm" => scene.source.set_rate(0).unwrap(),
                "ask kill" => scene.a.kill_controlplane().unwrap(),
                _ => continue,
            }
            answer.write_all(b"done\n").unwrap();
        }
        let status = browser.wait().unwrap();
        assert!(status.success(), "pictures are in {}", pictures.display());
        assert_eq!(scene.destination.qmp().query_status().unwrap(), "running");
        assert!(scene.destination.verify().unwrap().ok);
    });
}
