//! Baselines by the REST API: images added, listed, verified, removed; what is wrong is said with its cure.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod api_support;

use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;

use api_support::{Server, answer};
use serde_json::{Value, json};

/// Bytes without structure.
fn noise(blocks: usize) -> Vec<u8> {
    let mut bytes = vec![0; blocks * 4096];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes
}

async fn ended(server: &Server, begun: (u16, Value)) -> Value {
    assert_eq!(begun.0, 202, "{}", begun.1);
    let path = format!("/v1/baseline-work/{}", begun.1["work"]);
    let is_over = |view: &Value| matches!(view["state"].as_str(), Some("done" | "failed"));
    server.until(&path, is_over).await
}

async fn add(server: &Server, path: &Path, tenant: &str) -> Value {
    let body = json!({ "path": path, "tenant": tenant });
    ended(server, server.post("/v1/baselines", body).await).await
}

#[tokio::test]
async fn an_image_is_added_verified_and_removed_by_its_tenant_alone() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("baseline");
    let server = Server::start(folder.path(), &["--baseline-dir", dir.to_str().unwrap()]).await;
    let image = folder.path().join("disk.img");
    std::fs::write(&image, noise(600)).unwrap();
    let added = add(&server, &image, "team").await;
    assert_eq!(
        (&added["state"], &added["baseline"]["blocks"]),
        (&json!("done"), &json!(600))
    );
    assert_eq!(added["baseline"]["name"], "disk.img");
    let id = added["baseline"]["id"].as_str().unwrap().to_owned();

    // The same as qcow2 is the same.
    let qcow2 = folder.path().join("disk.qcow2");
    let convert = |more: &[&str], to: &Path| {
        let made = Command::new("qemu-img")
            .args(more)
            .arg(to)
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
    };
    convert(
        &[
            "convert",
            "-f",
            "raw",
            "-O",
            "qcow2",
            image.to_str().unwrap(),
        ],
        &qcow2,
    );
    assert_eq!(
        add(&server, &qcow2, "team").await["baseline"]["id"],
        id.as_str()
    );
    // One that builds on another file could name any.
    let layer = folder.path().join("layer.qcow2");
    convert(
        &[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-F",
            "raw",
            "-b",
            image.to_str().unwrap(),
        ],
        &layer,
    );
    let refused = add(&server, &layer, "team").await;
    assert_eq!(
        (&refused["state"], &refused["code"]),
        (&json!("failed"), &json!("baseline_image"))
    );
    assert!(
        refused["error"].as_str().unwrap().contains("flatten"),
        "{refused}"
    );

    let listed = |value: &Value| value["baselines"].as_array().unwrap().len();
    let (_, all) = server.get("/v1/baselines").await;
    let (_, other) = server.get("/v1/baselines?tenant=other").await;
    assert_eq!((listed(&all), listed(&other)), (1, 0));
    assert!(all["disk_bytes"].as_u64().unwrap() >= 600 * 4096, "{all}");

    let verify = format!("/v1/baselines/team/{id}/verify");
    let verified = ended(&server, server.post(&verify, json!({})).await).await;
    assert_eq!(
        (&verified["state"], &verified["damaged"]),
        (&json!("done"), &json!(0))
    );
    let segment = std::fs::read_dir(dir.join("tenants/team"))
        .unwrap()
        .find_map(|entry| {
            let path = entry.unwrap().path();
            (path.extension()? == "blocks").then_some(path)
        });
    let file = std::fs::File::options()
        .write(true)
        .open(segment.unwrap())
        .unwrap();
    file.write_all_at(b"damage", 77 * 4096).unwrap();
    let verified = ended(&server, server.post(&verify, json!({})).await).await;
    assert_eq!(verified["damaged"], 1);
    add(&server, &image, "team").await;
    let verified = ended(&server, server.post(&verify, json!({})).await).await;
    assert_eq!(verified["damaged"], 0);

    let remove = |tenant: &str| server.request("DELETE", &format!("/v1/baselines/{tenant}/{id}"));
    assert_eq!(answer(remove("other")).await.0, 404);
    assert_eq!(answer(remove("team")).await.0, 200);
    assert_eq!(listed(&server.get("/v1/baselines").await.1), 0);
    server.stop().await;
}

#[tokio::test]
async fn what_is_wrong_is_said_with_its_cure() {
    let folder = tempfile::tempdir().unwrap();
    let off = Server::start(folder.path(), &[]).await;
    let (status, problem) = off.get("/v1/baselines").await;
    assert_eq!(status, 409);
    assert!(
        problem["cure"].as_str().unwrap().contains("baseline_dir"),
        "{problem}"
    );
    off.stop().await;

    let dir = folder.path().join("baseline");
    let flags = [
        "--baseline-dir",
        dir.to_str().unwrap(),
        "--baseline-max-bytes",
        "1000000",
    ];
    let server = Server::start(folder.path(), &flags).await;
    for (body, word) in [
        (json!({ "path": "disk.img" }), "path"),
        (json!({ "path": "/x", "tenant": "../y" }), "tenant"),
        (json!({ "path": "/x", "pth": 1 }), "pth"),
    ] {
        let (status, problem) = server.post("/v1/baselines", body).await;
        assert_eq!(status, 400);
        assert!(
            problem["detail"].as_str().unwrap().contains(word),
            "{problem}"
        );
    }
    for path in [
        "/v1/baselines?tenant=A",
        "/v1/baselines?tennant=a",
        "/v1/baseline-work/x",
    ] {
        let (status, problem) = server.get(path).await;
        assert_eq!(status, 400, "{path}");
        assert!(problem["cure"].is_string(), "{problem}");
    }
    assert_eq!(server.get("/v1/baseline-work/7").await.0, 404);
    let missing = add(&server, Path::new("/no/such/image"), "a").await;
    assert_eq!(
        (&missing["state"], &missing["code"]),
        (&json!("failed"), &json!("baseline_image"))
    );
    let image = folder.path().join("large.img");
    std::fs::write(&image, noise(600)).unwrap();
    let large = add(&server, &image, "a").await;
    assert_eq!(large["code"], "baseline_too_large");
    std::fs::write(&image, vec![0; 100_000]).unwrap();
    assert_eq!(add(&server, &image, "a").await["code"], "baseline_empty");
    server.stop().await;
}
