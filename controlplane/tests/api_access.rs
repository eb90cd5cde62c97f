//! Who may do what on the API, how often, what is recorded of it, and what hostile clients get.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod api_support;

use std::time::Duration;

use api_support::{Server, TOKEN, answer, watchdog};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Makes a token and gives it and its id back.
async fn token(server: &Server, name: &str, scope: &str) -> (String, String) {
    let (status, made) = server
        .post("/v1/tokens", json!({ "name": name, "scope": scope }))
        .await;
    assert_eq!(status, 201, "{made}");
    let word = |key: &str| made[key].as_str().unwrap().to_owned();
    (word("token"), word("id"))
}

async fn with(server: &Server, token: &str, method: &str, path: &str, body: &str) -> (u16, Value) {
    let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
    let request = server
        .http
        .request(method, server.url(path))
        .bearer_auth(token);
    answer(request.body(body.to_owned())).await
}

#[tokio::test]
async fn a_token_does_what_its_scope_allows_until_it_is_revoked() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]).await;
    let (read, read_id) = token(&server, "screen", "read").await;
    let (operate, _) = token(&server, "ci", "operate").await;
    let (admin, _) = token(&server, "ops", "admin").await;
    let flag = "{\"feature\":\"dwcp_v3_hde\",\"percentage\":50}";
    let more = "{\"name\":\"x\",\"scope\":\"read\"}";
    for (method, path, body, needs) in [
        ("GET", "/v1/migrations", "", 0),
        ("GET", "/metrics", "", 0),
        ("POST", "/v1/feature-flags", flag, 1),
        ("PUT", "/v1/modes", "{\"mode\":\"internet\"}", 1),
        ("DELETE", "/v1/modes", "", 1),
        (
            "POST",
            "/v1/feature-flags/force-v1",
            "{\"force_v1\":true}",
            1,
        ),
        ("GET", "/v1/tokens", "", 2),
        ("GET", "/v1/audit", "", 2),
        ("POST", "/v1/tokens", more, 2),
        ("POST", "/v1/nics/revert", "{}", 2),
    ] {
        for (has, token) in [&read, &operate, &admin].into_iter().enumerate() {
            let (status, told) = with(&server, token, method, path, body).await;
            if has < needs {
                assert_eq!(status, 403, "{method} {path} {has}: {told}");
                assert_eq!(told["type"], "urn:dwcp:problem:insufficient_scope");
            } else {
                assert!(
                    status < 300 || status == 400,
                    "{method} {path} {has}: {status} {told}"
                );
            }
        }
    }
    // No list shows a secret, and the store has none.
    let (_, list) = server.get("/v1/tokens").await;
    assert!(
        !list.to_string().contains("dwcp_") && list["tokens"][0].get("digest").is_none(),
        "{list}"
    );
    let (status, _) = answer(server.request("DELETE", &format!("/v1/tokens/{read_id}"))).await;
    assert_eq!(status, 200);
    assert_eq!(
        with(&server, &read, "GET", "/v1/migrations", "").await.0,
        401
    );
    let (status, told) = answer(server.request("DELETE", &format!("/v1/tokens/{read_id}"))).await;
    assert_eq!(status, 404, "{told}");
    server.stop().await;
    let again = Server::start(folder.path(), &[]).await;
    assert_eq!(
        with(&again, &operate, "GET", "/v1/migrations", "").await.0,
        200
    );
    assert_eq!(
        with(&again, &read, "GET", "/v1/migrations", "").await.0,
        401
    );
    again.stop().await;
}

#[tokio::test]
async fn every_change_is_in_the_log_with_its_maker_and_without_secrets() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]).await;
    let (ci, ci_id) = token(&server, "ci", "operate").await;
    let flag = "{\"feature\":\"dwcp_v3_hde\",\"percentage\":50}";
    with(&server, &ci, "POST", "/v1/feature-flags", flag).await;
    let secret = "{\"vm\":{\"qmp\":\"/a\"},\"destination\":{\"api\":\"ftp://x\",\"qmp\":\"/b\",\"token\":\"hush-hush\"}}";
    let (status, _) = with(&server, &ci, "POST", "/v1/migrations", secret).await;
    assert_eq!(status, 400);
    // Looking is no change.
    with(&server, &ci, "GET", "/v1/migrations", "").await;
    server.stop().await;
    let again = Server::start(folder.path(), &[]).await;
    let (_, log) = again.get("/v1/audit").await;
    let entries = log["entries"].as_array().unwrap();
    let told: Vec<(u64, &str, u64)> = entries
        .iter()
        .map(|entry| {
            (
                entry["number"].as_u64().unwrap(),
                entry["path"].as_str().unwrap(),
                entry["status"].as_u64().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            (2, "/v1/migrations", 400),
            (1, "/v1/feature-flags", 200),
            (0, "/v1/tokens", 201)
        ]
    );
    assert_eq!(entries[1]["token"], ci_id.as_str());
    assert_eq!(entries[1]["token_name"], "ci");
    assert_eq!(entries[1]["scope"], "operate");
    assert_eq!(entries[1]["request"]["percentage"], 50);
    assert_eq!(entries[0]["request"]["destination"]["token"], "hidden");
    assert!(!log.to_string().contains("hush"));
    // In parts.
    let (_, first) = again.get("/v1/audit?limit=2").await;
    let next = first["next"].as_str().unwrap();
    let (_, second) = again.get(&format!("/v1/audit?limit=2&cursor={next}")).await;
    assert_eq!(
        (
            second["entries"].as_array().unwrap().len(),
            &second["entries"][0]["number"]
        ),
        (1, &json!(0))
    );
    assert!(second.get("next").is_none());
    for bad in ["limit=0", "limit=1001", "limit=x", "cursor=77", "page=2"] {
        assert_eq!(again.get(&format!("/v1/audit?{bad}")).await.0, 400, "{bad}");
    }
    again.stop().await;
}

#[tokio::test]
async fn a_post_with_a_key_runs_once() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]).await;
    let send = |path: &'static str, key: &'static str, body: Value| {
        let request = server
            .request("POST", path)
            .header("idempotency-key", key)
            .json(&body);
        async move {
            let response = watchdog(request.send()).await.unwrap();
            let status = response.status().as_u16();
            let replayed = response.headers().contains_key("idempotency-replayed");
            (status, replayed, response.json::<Value>().await.unwrap())
        }
    };
    let flag = |percent: u32| json!({"feature": "dwcp_v3_hde", "percentage": percent});
    let (status, replayed, first) = send("/v1/feature-flags", "k1", flag(40)).await;
    assert_eq!((status, replayed), (200, false));
    server.post("/v1/feature-flags", flag(60)).await;
    let (status, replayed, second) = send("/v1/feature-flags", "k1", flag(40)).await;
    assert_eq!((status, replayed), (200, true));
    assert_eq!(first, second, "the first answer, not the state now");
    let (_, now) = server.get("/v1/feature-flags/dwcp_v3_hde").await;
    assert_eq!(now["percentage"], 60, "it did not run again");
    let (status, _, told) = send("/v1/feature-flags", "k1", flag(41)).await;
    assert_eq!(
        (status, told["type"].as_str()),
        (422, Some("urn:dwcp:problem:key_reused"))
    );
    // Another caller's key is another key.
    let (ci, _) = token(&server, "ci", "operate").await;
    let request = server
        .http
        .post(server.url("/v1/feature-flags"))
        .bearer_auth(&ci);
    let (status, _) = answer(request.header("idempotency-key", "k1").json(&flag(70))).await;
    assert_eq!(status, 200);
    // A token that was shown once is not shown again, and only one was made.
    let new = json!({"name": "n", "scope": "read"});
    let (status, _, made) = send("/v1/tokens", "k2", new.clone()).await;
    assert_eq!(status, 201);
    let (status, replayed, told) = send("/v1/tokens", "k2", new).await;
    assert_eq!((status, replayed), (409, true), "{told}");
    assert!(!told.to_string().contains(made["token"].as_str().unwrap()));
    let (_, tokens) = server.get("/v1/tokens").await;
    assert_eq!(tokens["tokens"].as_array().unwrap().len(), 2);
    for bad in ["", "a b", "\u{e9}"] {
        let request = server
            .request("POST", "/v1/feature-flags")
            .header("idempotency-key", bad);
        assert_eq!(answer(request.json(&flag(1))).await.0, 400, "{bad:?}");
    }
    server.stop().await;
    let again = Server::start(folder.path(), &[]).await;
    let request = again
        .request("POST", "/v1/feature-flags")
        .header("idempotency-key", "k1");
    let (_, third) = answer(request.json(&flag(40))).await;
    assert_eq!(third, first, "over a restart too");
    again.stop().await;
}

#[tokio::test]
async fn who_asks_too_often_waits_alone_and_the_kill_switch_never_does() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &["--requests-per-s", "2"]).await;
    let mut refused = None;
    for _ in 0..10 {
        let response = watchdog(server.request("GET", "/v1/link").send())
            .await
            .unwrap();
        if response.status() == 429 {
            refused = Some(response);
            break;
        }
    }
    let refused = refused.expect("ten requests at once at two a second");
    let wait: u64 = refused.headers()["retry-after"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((1..=2).contains(&wait));
    // Strangers spend nobody's share, and have one of their own.
    let mut statuses = Vec::new();
    for _ in 0..10 {
        let response = watchdog(server.http.get(server.url("/v1/link")).send())
            .await
            .unwrap();
        statuses.push(response.status().as_u16());
    }
    assert!(
        statuses.contains(&401) && statuses.contains(&429),
        "{statuses:?}"
    );
    for _ in 0..10 {
        let (status, told) = server
            .post("/v1/feature-flags/force-v1", json!({"force_v1": true}))
            .await;
        assert_eq!(status, 200, "{told}");
    }
    server.stop().await;
}

#[tokio::test]
async fn the_documentation_is_for_everybody_and_loads_nothing_from_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]).await;
    for (path, kind, least) in [
        ("/docs/", "text/html", 500),
        ("/docs", "text/html", 500),
        ("/docs/docs.js", "text/javascript", 500),
        ("/docs/swagger-ui-bundle.js", "text/javascript", 400_000),
        ("/docs/swagger-ui.css", "text/css", 20_000),
    ] {
        let response = watchdog(server.http.get(server.url(path)).send())
            .await
            .unwrap();
        assert_eq!(response.status(), 200, "{path}");
        let headers = response.headers().clone();
        assert!(
            headers["content-type"].to_str().unwrap().starts_with(kind),
            "{path}"
        );
        let policy = headers["content-security-policy"].to_str().unwrap();
        assert!(
            policy.starts_with("default-src 'none'") && !policy.contains("http"),
            "{policy}"
        );
        let bytes = response.bytes().await.unwrap();
        assert!(bytes.len() > least, "{path}: {} bytes", bytes.len());
        if headers.contains_key("content-encoding") {
            assert_eq!(&bytes[..2], [0x1f, 0x8b], "{path} is packed");
        } else {
            let text = String::from_utf8(bytes.to_vec()).unwrap();
            assert!(
                !text.contains("http://") && !text.contains("https://"),
                "{path}"
            );
        }
    }
    for path in [
        "/docs/../v1/link",
        "/docs/%2e%2e/v1/link",
        "/docs/x",
        "//docs/",
    ] {
        let response = watchdog(server.http.get(server.url(path)).send())
            .await
            .unwrap();
        assert!([401, 404].contains(&response.status().as_u16()), "{path}");
    }
    server.stop().await;
}

/// Memory of this process that is in use.
fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = text.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

#[tokio::test]
async fn ten_thousand_connections_cost_a_bounded_memory_and_pass() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]).await;
    let before = resident_bytes();
    let mut crowd = Vec::new();
    let mut refused = 0;
    for _ in 0..100 {
        // Together: a connection that the system drops is dialled again a second later.
        let dials = (0..100).map(|_| TcpStream::connect(server.address));
        for dialled in watchdog(futures_util::future::join_all(dials)).await {
            match dialled {
                Ok(stream) => crowd.push(stream),
                Err(_) => refused += 1,
            }
        }
        // As many as this process may hold; the first ones are those that are served.
        crowd.truncate(400);
    }
    let grown = resident_bytes().saturating_sub(before);
    assert!(
        grown < 64 << 20,
        "{grown} bytes more with {} held, {refused} refused",
        crowd.len()
    );
    drop(crowd);
    let health = server.until("/v1/link", |value| {
        value["bandwidth_limit_bytes_per_s"] == 0
    });
    watchdog(health).await;
    server.stop().await;
}

#[tokio::test]
async fn ten_megabytes_are_refused_before_they_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]).await;
    for (how, framing) in [
        ("announced", "content-length: 10485760\r\n"),
        ("in chunks", "transfer-encoding: chunked\r\n"),
    ] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let head = format!(
            "POST /v1/migrations HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\n{framing}\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x1_0000));
        let mut sent = 0_u64;
        // Until the server has enough: it answers and closes long before the end.
        while sent < 10 << 20 {
            match tokio::time::timeout(Duration::from_secs(20), stream.write_all(chunk.as_bytes()))
                .await
            {
                Ok(Ok(())) => sent += 0x1_0000,
                _ => break,
            }
        }
        let mut told = Vec::new();
        let mut buffer = [0; 4096];
        while let Ok(Ok(bytes)) =
            tokio::time::timeout(Duration::from_secs(5), stream.read(&mut buffer)).await
        {
            if bytes == 0 {
                break;
            }
            told.extend_from_slice(&buffer[..bytes]);
        }
        let told = String::from_utf8_lossy(&told).into_owned();
        // A reset may have eaten the answer, but nothing else may have been said.
        assert!(
            told.is_empty() || told.starts_with("HTTP/1.1 413"),
            "{how}: {told}"
        );
        assert!(
            sent < 10 << 20 || told.starts_with("HTTP/1.1 413"),
            "{how}: all was taken"
        );
    }
    let (_, log) = server.get("/v1/audit").await;
    assert_eq!(log["entries"], json!([]), "what was not read was not run");
    server.stop().await;
}

#[tokio::test]
async fn whatever_is_malformed_gets_a_reason_and_never_a_fault() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &["--requests-per-s", "0"]).await;
    let (status, document) = server.get("/v1/openapi.json").await;
    assert_eq!((status, document["openapi"].as_str()), (200, Some("3.1.0")));
    let words = [
        "x",
        "..",
        "%00",
        "%ff%fe",
        "-1",
        "'\"<>",
        "0000000000000000000000000000000000",
        "%F0%9F%92%A9",
    ];
    let bodies = [
        "",
        "null",
        "0",
        "[]",
        "\"\"",
        "{}",
        "{\"a\":",
        "\u{0}",
        "{\"feature\":{}}",
        "{\"name\":1,\"scope\":\"root\"}",
        "{\"mode\":null}",
        "{\"bandwidth_limit_bytes_per_s\":-1}",
        "{\"bandwidth_limit_bytes_per_s\":99999999999999999999}",
        "{\"profile\":\"\\u0000\"}",
        "{\"nic\":\"../../etc\"}",
        "{\"session\":\"\"}",
        "{\"force_v1\":1}",
    ];
    let mut asked = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        if path.starts_with("/v1/health") || path.ends_with("/events") {
            continue;
        }
        for method in item.as_object().unwrap().keys() {
            let queries = [
                "",
                "?limit=x",
                "?limit=-1",
                "?cursor=%00",
                "?seconds=0",
                "?=&&&",
                "?%ff",
            ];
            let cases = words
                .iter()
                .map(|word| {
                    (
                        path.replace("{id}", word)
                            .replace("{session}", word)
                            .replace("{peer}", word)
                            .replace("{feature}", word)
                            .replace("{tenant}", word)
                            .replace("{number}", word)
                            .replace("{key}", word),
                        "{}",
                    )
                })
                .chain(
                    bodies
                        .iter()
                        .map(|body| (path.replace(['{', '}'], ""), *body)),
                )
                .chain(queries.iter().map(|query| (format!("{path}{query}"), "{}")));
            for (path, body) in cases {
                let request = server
                    .request(&method.to_uppercase(), &path)
                    .body(body.to_owned());
                let response = watchdog(request.send()).await.unwrap();
                let status = response.status().as_u16();
                let kind = response.headers().get("content-type").cloned();
                let text = response.text().await.unwrap();
                // Without a data plane there is nothing to look into.
                let away = path.starts_with("/v1/perf") && matches!(status, 501 | 503);
                assert!(
                    status < 500 || away,
                    "{method} {path} {body:?}: {status} {text}"
                );
                // Its protocol has a form of its own for refusals.
                let own = path.starts_with("/ofrep") && matches!(status, 400 | 404);
                if own && kind.as_ref().is_some_and(|it| it == "application/json") {
                    let failure: Value = serde_json::from_str(&text).unwrap();
                    assert!(failure["errorCode"].is_string(), "{failure}");
                } else if status >= 400 {
                    let kind =
                        kind.unwrap_or_else(|| panic!("{status}, {text:?}, of {method} {path}"));
                    assert_eq!(kind, "application/problem+json", "{method} {path}");
                    let problem: Value = serde_json::from_str(&text).unwrap();
                    assert!(
                        problem["cure"]
                            .as_str()
                            .is_some_and(|cure| !cure.is_empty()),
                        "{problem}"
                    );
                }
                asked += 1;
            }
        }
    }
    assert!(asked > 1_000, "{asked} requests");
    server.stop().await;
}

#[tokio::test]
async fn a_node_that_does_not_answer_gets_neither_a_vote_nor_the_lead() {
    watchdog(async {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::start(folder.path(), &[]).await;
        let member = |address: &str| json!({ "id": 2, "name": "host-b", "address": address });
        for address in ["", ":", "host", ":7781", "host:", "host:0", "host:70000"] {
            let (status, problem) = server.post("/v1/cluster/members", member(address)).await;
            assert_eq!(status, 400, "{address}: {problem}");
        }
        // Nobody listens there.
        let body = member("127.0.0.1:9");
        let (status, problem) = server.post("/v1/cluster/members", body).await;
        assert_eq!(status, 409, "{problem}");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains("127.0.0.1:9") && detail.contains("start the node there"));
        let (_, view) = server.get("/v1/cluster").await;
        assert_eq!(view["members"].as_array().unwrap().len(), 1, "{view}");
        // Nor the lead, which stays here.
        let body = json!({ "id": 2 });
        let request = server.request("PUT", "/v1/cluster/leader").json(&body);
        let (status, problem) = answer(request).await;
        assert_eq!(status, 409, "{problem}");
        let flag = json!({ "feature": "dwcp_v3_ass", "percentage": 5 });
        let (status, view) = server.post("/v1/feature-flags", flag).await;
        assert_eq!(status, 200, "{view}");
    })
    .await;
}
