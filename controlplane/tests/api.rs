//! The REST API against a real server: who may ask, what a broken or hostile client gets, what a
//! restart keeps.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod api_support;

use api_support::{Server, TOKEN, answer, watchdog};
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const ID: &str = "0102030405060708090a0b0c0d0e0f10";

/// Every route with every method it takes.
const ROUTES: &[(&str, &str)] = &[
    ("GET", "/v1/migrations"),
    ("POST", "/v1/migrations"),
    ("GET", "/v1/migrations/0102030405060708090a0b0c0d0e0f10"),
    ("PATCH", "/v1/migrations/0102030405060708090a0b0c0d0e0f10"),
    ("DELETE", "/v1/migrations/0102030405060708090a0b0c0d0e0f10"),
    (
        "GET",
        "/v1/migrations/0102030405060708090a0b0c0d0e0f10/events",
    ),
    (
        "POST",
        "/v1/migrations/0102030405060708090a0b0c0d0e0f10/recover",
    ),
    ("GET", "/v1/events"),
    ("GET", "/v1/incoming"),
    ("POST", "/v1/incoming"),
    ("GET", "/v1/incoming/0102030405060708090a0b0c0d0e0f10"),
    ("DELETE", "/v1/incoming/0102030405060708090a0b0c0d0e0f10"),
    (
        "POST",
        "/v1/incoming/0102030405060708090a0b0c0d0e0f10/verdict",
    ),
    (
        "POST",
        "/v1/incoming/0102030405060708090a0b0c0d0e0f10/recover",
    ),
    ("GET", "/v1/feature-flags"),
    ("POST", "/v1/feature-flags"),
    ("GET", "/v1/feature-flags/history"),
    ("POST", "/v1/feature-flags/exclude"),
    ("POST", "/v1/feature-flags/force-v1"),
    ("GET", "/v1/feature-flags/dwcp_v3_hde"),
    ("GET", "/v1/modes"),
    ("PUT", "/v1/modes"),
    ("DELETE", "/v1/modes"),
    ("GET", "/v1/modes/10.0.0.2"),
    ("PUT", "/v1/modes/10.0.0.2"),
    ("DELETE", "/v1/modes/10.0.0.2"),
    ("GET", "/v1/link"),
    ("PATCH", "/v1/link"),
    ("GET", "/v1/nics"),
    ("POST", "/v1/nics/plan"),
    ("POST", "/v1/nics/apply"),
    ("POST", "/v1/nics/verify"),
    ("POST", "/v1/nics/revert"),
    ("GET", "/v1/baselines"),
    ("POST", "/v1/baselines"),
    ("DELETE", "/v1/baselines/a/b"),
    ("POST", "/v1/baselines/a/b/verify"),
    ("GET", "/v1/baseline-work/1"),
    ("DELETE", "/v1/baseline-work/1"),
    ("GET", "/v1/health"),
    ("GET", "/v1/health/detailed"),
    ("GET", "/v1/perf/counters"),
    ("GET", "/v1/perf/flamegraph"),
    ("GET", "/v1/perf/hardware"),
    ("GET", "/metrics"),
    ("GET", "/v1/tokens"),
    ("POST", "/v1/tokens"),
    ("DELETE", "/v1/tokens/0102030405"),
    ("GET", "/v1/audit"),
    ("GET", "/v1/openapi.json"),
    ("GET", "/v1/nothing"),
    ("PUT", "/v1/health"),
];

fn is_problem(value: &Value, status: u16) -> bool {
    ["type", "title", "detail", "cure"]
        .iter()
        .all(|key| value[key].as_str().is_some_and(|text| !text.is_empty()))
        && value["status"] == status
}

#[tokio::test]
async fn nothing_is_told_without_the_token() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]).await;
    let wrong = format!("Bearer {TOKEN}x");
    let short = format!("Bearer {}", &TOKEN[..TOKEN.len() - 1]);
    let basic = format!("Basic {TOKEN}");
    let offers: [&[&str]; 7] = [
        &[],
        &[""],
        &["Bearer"],
        &[&wrong],
        &[&short],
        &[&basic],
        &[&wrong, "Bearer 0123456789abcdef-token"],
    ];
    for (method, path) in ROUTES {
        for offer in offers {
            let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
            let mut request = server
                .http
                .request(method.clone(), server.url(path))
                .body("{}");
            for value in offer {
                request = request.header("authorization", *value);
            }
            let response = watchdog(request.send()).await.unwrap();
            let headers = response.headers().clone();
            assert_eq!(response.status(), 401, "{method} {path} {offer:?}");
            assert!(
                headers["www-authenticate"]
                    .to_str()
                    .unwrap()
                    .starts_with("Bearer ")
            );
            assert_eq!(headers["content-type"], "application/problem+json");
            let problem: Value = response.json().await.unwrap();
            assert!(is_problem(&problem, 401), "{problem}");
            assert!(!problem.to_string().contains(TOKEN));
        }
    }
    // And with it each of them is reached.
    for (method, path) in ROUTES {
        let response = watchdog(server.request(method, path).body("{}").send())
            .await
            .unwrap();
        assert_ne!(response.status(), 401, "{method} {path}");
    }
    server.stop().await;
}

#[tokio::test]
async fn metrics_may_be_opened_and_nothing_else_with_them() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &["--metrics-open", "true"]).await;
    for (path, status) in [("/metrics", 200), ("/metrics/", 401), ("/v1/health", 401)] {
        let response = watchdog(server.http.get(server.url(path)).send())
            .await
            .unwrap();
        assert_eq!(response.status(), status, "{path}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_bad_body_gets_a_problem_that_names_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]).await;
    let long = "x".repeat(65 << 10);
    for (path, body, status, word) in [
        ("/v1/migrations", "", 400, "body"),
        ("/v1/migrations", "{", 400, "EOF"),
        ("/v1/migrations", "[]", 400, "body"),
        (
            "/v1/migrations",
            "{\"vm\":{\"qmp\":\"/a\",\"x\":1}}",
            400,
            "x",
        ),
        ("/v1/migrations", "\u{0}\u{1}", 400, "body"),
        ("/v1/migrations", &long, 413, "65536"),
        (
            "/v1/incoming",
            "{\"session\":\"zz\",\"qmp\":\"/q\"}",
            400,
            "session",
        ),
        (
            "/v1/feature-flags",
            "{\"feature\":\"dwcp_v3_hde\"}",
            400,
            "percentage",
        ),
        (
            "/v1/feature-flags",
            "{\"feature\":\"dwcp_v3_hde\",\"percentage\":101}",
            400,
            "percentage",
        ),
        (
            "/v1/feature-flags",
            "{\"feature\":\"dwcp_v3_hde\",\"percentage\":1e999}",
            400,
            "number",
        ),
        (
            "/v1/feature-flags",
            "{\"feature\":\"dwcp_v3_zzz\",\"enabled\":true}",
            404,
            "dwcp_v3_zzz",
        ),
        (
            "/v1/feature-flags",
            "{\"feature\":\"dwcp_v3_hde\",\"enabeld\":true}",
            400,
            "enabeld",
        ),
        (
            "/v1/feature-flags/exclude",
            "{\"feature\":\"dwcp_v3_hde\",\"nodes\":[]}",
            400,
            "nodes",
        ),
        (
            "/v1/feature-flags/exclude",
            "{\"feature\":\"dwcp_v3_hde\",\"nodes\":[\"a b\"]}",
            400,
            "node",
        ),
        (
            "/v1/feature-flags/force-v1",
            "{\"force_v1\":\"yes\"}",
            400,
            "boolean",
        ),
    ] {
        let request = server.request("POST", path).body(body.to_owned());
        let (got, problem) = answer(request).await;
        let shown: String = body.chars().take(80).collect();
        assert_eq!(got, status, "{path} {shown}: {problem}");
        assert!(is_problem(&problem, status), "{problem}");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains(word), "{path} {shown}: {detail}");
        assert!(detail.len() < 1_000);
    }
    // Deep nesting is refused, not followed.
    let deep = format!("{}1{}", "[".repeat(30_000), "]".repeat(30_000));
    let (status, _) = answer(server.request("POST", "/v1/migrations").body(deep)).await;
    assert_eq!(status, 400);
    server.stop().await;
}

#[tokio::test]
async fn unknown_things_are_not_found() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]).await;
    for (method, path, status) in [
        ("GET", "/v1/nothing".to_owned(), 404),
        ("PUT", "/v1/health".to_owned(), 405),
        ("GET", format!("/v1/migrations/{ID}"), 404),
        ("GET", format!("/v1/migrations/{ID}/events"), 404),
        ("DELETE", format!("/v1/migrations/{ID}"), 404),
        ("POST", format!("/v1/migrations/{ID}/recover"), 404),
        ("GET", "/v1/migrations/zz".to_owned(), 400),
        ("GET", "/v1/migrations/%00%ff".to_owned(), 400),
        ("GET", format!("/v1/incoming/{ID}"), 404),
        ("POST", format!("/v1/incoming/{ID}/verdict"), 404),
        ("DELETE", format!("/v1/incoming/{ID}"), 404),
        ("GET", "/v1/feature-flags/none".to_owned(), 404),
        ("GET", "/v1/feature-flags/none?agreed=true".into(), 404),
        ("GET", "/v1/feature-flags/x?agreed=perhaps".into(), 400),
    ] {
        let (got, problem) = answer(server.request(method, &path)).await;
        assert_eq!(got, status, "{method} {path}: {problem}");
        assert!(is_problem(&problem, status), "{method} {path}: {problem}");
    }
    server.stop().await;
}

/// Sends raw bytes, closes the sending half if asked, and returns what comes until the end.
async fn raw(server: &Server, bytes: &[u8], close: bool) -> String {
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    // The server may refuse before everything is sent.
    let _ = stream.write_all(bytes).await;
    if close {
        let _ = stream.shutdown().await;
    }
    let mut answer = Vec::new();
    let mut chunk = [0; 4096];
    watchdog(async {
        while let Ok(count @ 1..) = stream.read(&mut chunk).await {
            answer.extend_from_slice(&chunk[..count]);
        }
    })
    .await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn garbage_ends_its_own_connection_only() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]).await;
    let head =
        format!("POST /v1/feature-flags HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {TOKEN}\r\n");
    let many = format!("{head}{}\r\n", "x: y\r\n".repeat(1_000));
    let long = format!("{head}x: {}\r\n\r\n", "y".repeat(1 << 20));
    let chunk = format!("{head}transfer-encoding: chunked\r\n\r\nffffffffffffffff\r\n{{");
    let endless = format!(
        "{head}transfer-encoding: chunked\r\nconnection: close\r\n\r\n{}",
        format!("1000\r\n{}\r\n", "x".repeat(4096)).repeat(40)
    );
    let liar = format!("{head}content-length: 99999999999\r\nconnection: close\r\n\r\n{{");
    let smuggled = format!(
        "{head}content-length: 3\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n0\r\n\r\n"
    );
    for (what, bytes, allowed) in [
        (
            "noise",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
            &["400"][..],
        ),
        ("zeros", vec![0; 100_000], &["400"]),
        ("no version", b"GET /\r\n\r\n".to_vec(), &["400"]),
        ("many headers", many.into_bytes(), &["431", "400"]),
        ("long header", long.into_bytes(), &["431", "400"]),
        ("overflowing chunk", chunk.into_bytes(), &["400", "413"]),
        ("endless body", endless.into_bytes(), &["413"]),
        ("claimed length", liar.into_bytes(), &["413"]),
        ("two lengths", smuggled.into_bytes(), &["400"]),
    ] {
        let answer = raw(&server, &bytes, true).await;
        let status = answer.split(' ').nth(1).unwrap_or("none");
        // A connection that is cut without a word is an answer too, a success is not.
        let cut = answer.is_empty();
        assert!(cut || allowed.contains(&status), "{what}: {answer}");
    }
    assert_eq!(server.get("/v1/feature-flags").await.0, 200);
    server.stop().await;
}

#[tokio::test]
async fn who_sends_slowly_is_cut_off_and_others_are_served() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]).await;
    let half_body = format!(
        "POST /v1/feature-flags HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {TOKEN}\r\ncontent-length: 100\r\n\r\n{{"
    );
    let (head, idle, body, others) = tokio::join!(
        raw(&server, b"GET /v1/health HTTP/1.1\r\nx: ", false),
        raw(&server, b"", false),
        raw(&server, half_body.as_bytes(), false),
        server.get("/v1/feature-flags"),
    );
    assert!(!head.contains(" 200 "), "{head}");
    assert!(!idle.contains(" 200 "), "{idle}");
    assert!(body.starts_with("HTTP/1.1 408"), "{body}");
    assert_eq!(others.0, 200);
    server.stop().await;
}

#[tokio::test]
async fn a_crowd_is_bounded_and_leaves_room_when_it_goes() {
    use dwcp_controlplane::api::serve::{CONNECTIONS_MAX, LOCAL_RESERVE};
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]).await;
    let mut crowd = Vec::new();
    for _ in 0..CONNECTIONS_MAX + LOCAL_RESERVE {
        crowd.push(TcpStream::connect(server.address).await.unwrap());
    }
    // One too many is closed without an answer.
    let mut extra = TcpStream::connect(server.address).await.unwrap();
    let _ = extra.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut answer = Vec::new();
    let _ = watchdog(extra.read_to_end(&mut answer)).await;
    assert!(answer.is_empty());
    drop(crowd);
    watchdog(async {
        while server
            .http
            .get(server.url("/v1/health"))
            .send()
            .await
            .is_err()
        {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
    server.stop().await;
}

#[tokio::test]
async fn flags_and_their_history_outlive_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]).await;
    let (_, before) = server.get("/v1/feature-flags").await;
    assert_eq!(before["force_v1"], false);
    let on: Vec<&str> = before["flags"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|flag| flag["enabled"] == true && flag["percentage"] == 100)
        .map(|flag| flag["feature"].as_str().unwrap())
        .collect();
    assert_eq!(on, ["dwcp_v3_amst", "dwcp_v3_hde"]);
    let set = json!({"feature": "dwcp_v3_hde", "percentage": 10, "enabled": true});
    let request = server
        .request("POST", "/v1/feature-flags")
        .header("dwcp-actor", "alice");
    let (status, flag) = answer(request.json(&set)).await;
    assert_eq!(
        (status, &flag["percentage"], &flag["version_here"]),
        (200, &json!(10), &json!("v1"))
    );
    let nodes = json!({"feature": "dwcp_v3_amst", "nodes": ["node-000000"]});
    let (_, flag) = server.post("/v1/feature-flags/exclude", nodes).await;
    assert_eq!(flag["version_here"], "v1");
    let (status, thrown) = server
        .post("/v1/feature-flags/force-v1", json!({"force_v1": true}))
        .await;
    assert_eq!(status, 200);
    // Nobody is attached: it is kept, and does not claim to be in force.
    assert_eq!(thrown["persisted"], true);
    assert_eq!(
        (&thrown["applied"], &thrown["applied_us"]),
        (&json!(false), &Value::Null)
    );
    assert!(thrown["note"].as_str().unwrap().contains("no data plane"));
    let (_, before) = server.get("/v1/feature-flags").await;
    server.stop().await;

    let server = Server::start(folder.path(), &[]).await;
    let (_, after) = server.get("/v1/feature-flags").await;
    assert_eq!(after, before);
    assert_eq!(after["force_v1"], true);
    let (_, history) = server.get("/v1/feature-flags/history").await;
    let entries = history["entries"].as_array().unwrap();
    let what: Vec<&str> = entries
        .iter()
        .map(|entry| entry["what"].as_str().unwrap())
        .collect();
    assert_eq!(what, ["force_v1", "exclude", "set"]);
    assert_eq!(entries[2]["by"], "127.0.0.1 (alice)");
    assert_eq!(entries[2]["percentage_before"], 100);
    server.stop().await;
}

#[tokio::test]
async fn overrides_of_modes_are_told_and_outlive_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]).await;
    let events = watchdog(server.request("GET", "/v1/events").send())
        .await
        .unwrap();
    let put = |path: &str, mode: &str| {
        let request = server.request("PUT", path).header("dwcp-actor", "alice");
        answer(request.json(&json!({ "mode": mode })))
    };
    let (status, peer) = put("/v1/modes/10.0.0.2", "internet").await;
    assert_eq!(
        (status, &peer["mode"], &peer["by"]),
        (200, &json!("internet"), &json!("override_of_peer")),
        "{peer}"
    );
    assert!(peer["reason"].as_str().unwrap().contains("alice"), "{peer}");
    let (_, all) = put("/v1/modes", "datacenter").await;
    assert_eq!(all["override"]["mode"], "datacenter");
    assert_eq!(all["peers"][0]["mode"], "internet", "its own counts");
    let first = watchdog(events.bytes_stream().next())
        .await
        .unwrap()
        .unwrap();
    let first = String::from_utf8_lossy(&first).into_owned();
    assert!(
        first.contains("event: mode") && first.contains("10.0.0.2"),
        "{first}"
    );
    for (path, body, status) in [
        ("/v1/modes/host", json!({ "mode": "internet" }), 400),
        ("/v1/modes", json!({ "mode": "lan" }), 400),
        ("/v1/modes", json!({ "mode": "hybrid", "peer": "x" }), 400),
    ] {
        let (found, problem) = answer(server.request("PUT", path).json(&body)).await;
        assert!(found == status && is_problem(&problem, status), "{problem}");
    }
    assert_eq!(server.get("/v1/modes/10.0.0.9").await.0, 404);
    let (_, before) = server.get("/v1/modes").await;
    server.stop().await;

    let server = Server::start(folder.path(), &[]).await;
    let (_, mut after) = server.get("/v1/modes").await;
    // The changes are of the process that made them.
    after["peers"][0]["changes"] = before["peers"][0]["changes"].clone();
    assert_eq!(after, before);
    let (_, peer) = answer(server.request("DELETE", "/v1/modes/10.0.0.2")).await;
    assert_eq!(
        (&peer["mode"], &peer["by"]),
        (&json!("datacenter"), &json!("override_of_all"))
    );
    let (_, all) = answer(server.request("DELETE", "/v1/modes")).await;
    assert_eq!(
        (&all["override"], &all["peers"][0]["mode"]),
        (&Value::Null, &Value::Null)
    );
    server.stop().await;
}

#[tokio::test]
async fn health_says_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]).await;
    let (status, health) = server.get("/v1/health").await;
    assert_eq!(status, 503);
    assert_eq!(
        health,
        json!({"status": "unavailable", "data_plane": false, "store": true})
    );
    let (status, health) = server.get("/v1/health/detailed").await;
    assert_eq!(status, 503);
    assert!(
        health["problems"][0]
            .as_str()
            .unwrap()
            .contains("no data plane"),
        "{health}"
    );
    for path in ["counters", "flamegraph?seconds=1", "hardware"] {
        let (status, problem) = server.get(&format!("/v1/perf/{path}")).await;
        assert_eq!(status, 503, "{path}");
        assert!(is_problem(&problem, 503));
    }
    for query in [
        "flamegraph?seconds=0",
        "flamegraph?seconds=61",
        "flamegraph?seconds=x",
        "flamegraph?hz=0",
        "flamegraph?hz=1000",
        "flamegraph?format=png",
        "flamegraph?colour=red",
        "hardware?seconds=99",
    ] {
        let (status, problem) = server.get(&format!("/v1/perf/{query}")).await;
        assert_eq!(status, 400, "{query}");
        assert!(is_problem(&problem, 400), "{query}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_second_control_plane_on_the_same_state_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]).await;
    server.until("/v1/health", |_| true).await;
    let config = api_support::config(folder.path(), &[]);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (_stop, stopped) = tokio::sync::watch::channel(false);
    let refused = watchdog(dwcp_controlplane::node::run(&config, listener, stopped)).await;
    assert!(
        refused
            .unwrap_err()
            .to_string()
            .contains("another control plane")
    );
    server.stop().await;
}

#[tokio::test]
async fn an_event_stream_lives_and_ends_with_the_server() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]).await;
    let mut response = watchdog(server.request("GET", "/v1/events").send())
        .await
        .unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let chunk = watchdog(response.chunk()).await.unwrap().unwrap();
    assert_eq!(&chunk[..], b": alive\n\n");
    server.stop().await;
    watchdog(async { while let Ok(Some(_)) = response.chunk().await {} }).await;
}

#[tokio::test]
async fn streams_are_fewer_than_connections() {
    use dwcp_controlplane::api::events::STREAMS_MAX;
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]).await;
    let mut open = Vec::new();
    for _ in 0..STREAMS_MAX {
        open.push(
            watchdog(server.request("GET", "/v1/events").send())
                .await
                .unwrap(),
        );
    }
    let (status, problem) = server.get("/v1/events").await;
    assert_eq!(status, 503);
    assert!(is_problem(&problem, 503));
    assert_eq!(server.get("/v1/feature-flags").await.0, 200);
    drop(open);
    watchdog(async {
        while watchdog(server.request("GET", "/v1/events").send())
            .await
            .unwrap()
            .status()
            != 200
        {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    })
    .await;
    server.stop().await;
}
