//! The REST API with something behind it: a stand-in data plane in a process of its own, with real
//! shared memory, and real hypervisors.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod api_support;
#[allow(dead_code, reason = "the kit serves the tests of jobs as well")]
mod jobs_kit;

use api_support::{Server, TOKEN, watchdog};
use futures_util::StreamExt;
use jobs_kit::{DataPlane, Qemu, releases};
use serde_json::{Value, json};

/// The way into the process that plays the data plane.
#[test]
fn fake_data_plane() {
    jobs_kit::fake_entry();
}

async fn attached(server: &Server) {
    server
        .until("/v1/feature-flags", |flags| flags["in_force"] == true)
        .await;
}

#[tokio::test]
async fn the_kill_switch_is_in_force_when_it_says_so_and_again_at_the_next_attach() {
    let folder = tempfile::tempdir().unwrap();
    let mut plane = DataPlane::start(&folder.path().join("attach.sock"));
    let server = Server::start(folder.path(), &[]).await;
    attached(&server).await;
    let (_, thrown) = server
        .post("/v1/feature-flags/force-v1", json!({"force_v1": true}))
        .await;
    assert_eq!(
        (&thrown["applied"], &thrown["persisted"]),
        (&json!(true), &json!(true)),
        "{thrown}"
    );
    assert!(thrown["applied_us"].is_u64(), "{thrown}");
    eprintln!("kill switch in force after {} us", thrown["applied_us"]);
    let (status, health) = server.get("/v1/health").await;
    assert_eq!((status, &health["status"]), (200, &json!("degraded")));

    // Another data plane begins with words of its own: it is told again.
    plane.kill();
    server
        .until("/v1/feature-flags", |flags| flags["in_force"] == false)
        .await;
    let _plane = DataPlane::start(&folder.path().join("attach.sock"));
    attached(&server).await;
    let (_, flags) = server.get("/v1/feature-flags").await;
    assert_eq!(flags["force_v1"], true);
    let (_, released) = server
        .post("/v1/feature-flags/force-v1", json!({"force_v1": false}))
        .await;
    assert_eq!(
        (&released["applied"], &released["force_v1"]),
        (&json!(true), &json!(false))
    );
    let (status, counters) = server.get("/v1/perf/counters").await;
    assert_eq!(status, 200);
    let worker = &counters["workers"][0];
    assert!(worker["counters"]["turns_busy"].is_u64(), "{counters}");
    assert_eq!(worker["stages"][0]["stage"], "intake", "{counters}");
    assert!(worker["busy_ns"].is_u64(), "{counters}");
    server.stop().await;
}

#[tokio::test]
async fn a_limit_of_all_is_in_force_at_once_and_again_at_the_next_attach_and_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut plane = DataPlane::start(&folder.path().join("attach.sock"));
    let server = Server::start(folder.path(), &[]).await;
    attached(&server).await;
    let shown = |limit: u64, in_force: bool| json!({ "bandwidth_limit_bytes_per_s": limit, "in_force": in_force });
    assert_eq!(server.get("/v1/link").await, (200, shown(0, true)));
    let set = server
        .request("PATCH", "/v1/link")
        .json(&json!({ "bandwidth_limit_bytes_per_s": 7_000_000 }));
    assert_eq!(
        api_support::answer(set).await,
        (200, shown(7_000_000, true))
    );
    plane.kill();
    let is = |limit, in_force| move |link: &Value| *link == shown(limit, in_force);
    server.until("/v1/link", is(7_000_000, false)).await;
    let _plane = DataPlane::start(&folder.path().join("attach.sock"));
    server.until("/v1/link", is(7_000_000, true)).await;
    server.stop().await;
    let server = Server::start(folder.path(), &[]).await;
    server.until("/v1/link", is(7_000_000, true)).await;
    for bad in [
        json!({}),
        json!({ "bandwidth_limit_bytes_per_s": -1 }),
        json!({ "x": 1 }),
    ] {
        let (status, problem) =
            api_support::answer(server.request("PATCH", "/v1/link").json(&bad)).await;
        assert!((400..500).contains(&status), "{problem}");
    }
    server.stop().await;
}

/// The process of the data plane is looked at from outside, one look at a time.
#[tokio::test]
async fn a_data_plane_is_profiled_while_it_runs() {
    let folder = tempfile::tempdir().unwrap();
    let mut plane = DataPlane::start(&folder.path().join("attach.sock"));
    let server = Server::start(folder.path(), &[]).await;
    attached(&server).await;
    let path = "/v1/perf/flamegraph?seconds=2&hz=199";
    let (first, second) = tokio::join!(server.request("GET", path).send(), async {
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        server.get("/v1/perf/hardware").await
    });
    let first = first.unwrap();
    assert_eq!(first.status(), 200);
    assert_eq!(first.headers()["content-type"], "image/svg+xml");
    let picture = first.text().await.unwrap();
    assert!(picture.starts_with("<?xml") && picture.contains("data plane of"));
    assert_eq!(second.0, 409, "{}", second.1);

    let (status, counts) = server.get("/v1/perf/hardware").await;
    assert_eq!(status, 200, "{counts}");
    let threads = counts["threads"].as_array().unwrap();
    assert!(!threads.is_empty());
    for thread in threads {
        assert!(thread["counts"]["running_ns"].is_u64(), "{counts}");
    }
    let cycles = threads.iter().all(|t| t["counts"]["cycles"].is_u64());
    assert!(cycles || counts["absent"]["cycles"].is_string(), "{counts}");

    // A client that goes away ends the look: the next one need not wait for a minute.
    let long = server
        .request("GET", "/v1/perf/flamegraph?seconds=60")
        .send();
    let gone = tokio::time::timeout(std::time::Duration::from_millis(500), long).await;
    assert!(gone.is_err(), "a look of a minute was over at once");
    let again = "/v1/perf/hardware?seconds=1";
    server
        .until(again, |answer| answer["threads"].is_array())
        .await;

    plane.kill();
    let (_, gone) = server.get("/v1/health").await;
    assert!(gone["status"].is_string());
    let refused = |answer: &Value| answer["status"] == 503;
    server.until(again, refused).await;
    server.stop().await;
}

/// A guest moves from one node to another through the API alone, followed by its events.
#[tokio::test]
async fn a_guest_moves_and_its_events_tell() {
    let folder = tempfile::tempdir().unwrap();
    let release = &releases()[0];
    let mut hosts = Vec::new();
    for name in ["a", "b"] {
        let folder = folder.path().join(name);
        std::fs::create_dir_all(folder.join("qmp")).unwrap();
        let plane = DataPlane::start(&folder.join("attach.sock"));
        let server = Server::start(&folder, &[]).await;
        attached(&server).await;
        let qemu = Qemu::start(release, &folder.join("qmp"), "vm", name == "b");
        hosts.push((plane, server, qemu));
    }
    let request = json!({
        "vm": { "qmp": hosts[0].2.monitor, "name": "guest" },
        "destination": { "api": hosts[1].1.url(""), "qmp": hosts[1].2.monitor, "token": TOKEN },
    });
    let source = &hosts[0].1;
    let (status, view) = source.post("/v1/migrations", request).await;
    assert_eq!(status, 201, "{view}");
    let id = view["id"].as_str().unwrap().to_owned();
    assert!(
        !view.to_string().contains(TOKEN),
        "the peer's token must not be shown"
    );

    let path = format!("/v1/migrations/{id}/events");
    let response = watchdog(source.request("GET", &path).send()).await.unwrap();
    assert_eq!(response.status(), 200);
    let chunks = watchdog(response.bytes_stream().collect::<Vec<_>>()).await;
    let text: Vec<u8> = chunks
        .into_iter()
        .flat_map(|chunk| chunk.unwrap().to_vec())
        .collect();
    let text = String::from_utf8(text).unwrap();
    let mut last_id = 0;
    let mut views: Vec<Value> = Vec::new();
    for event in text.split("\n\n").filter(|event| event.contains("data: ")) {
        let field = |name: &str| {
            event
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .map(str::trim)
                .unwrap()
                .to_owned()
        };
        assert_eq!(field("event:"), "migration");
        let id: u64 = field("id:").parse().unwrap();
        assert!(id > last_id, "ids grow");
        last_id = id;
        views.push(serde_json::from_str(&field("data:")).unwrap());
    }
    assert!(views.iter().all(|view| view["id"] == id));
    let last = views.last().unwrap();
    assert_eq!(
        (&last["state"], &last["guest"]),
        (&json!("completed"), &json!("destination")),
        "{last}"
    );
    // Words that nobody has set mean v1.
    assert_eq!(last["version"], "v3");
    assert_eq!(
        views
            .iter()
            .filter(|view| view["state"] == "completed")
            .count(),
        1,
        "it ends there"
    );

    // Asked for again, the stream of an ended migration is one event long.
    let response = watchdog(source.request("GET", &path).send()).await.unwrap();
    let again = watchdog(response.text()).await.unwrap();
    assert_eq!(again.matches("event:").count(), 1);

    let metrics = watchdog(source.request("GET", "/metrics").send())
        .await
        .unwrap();
    let metrics = metrics.text().await.unwrap();
    let measured = |name: &str| -> f64 {
        ["v1", "v3"]
            .iter()
            .filter_map(|v| {
                let sample = format!("dwcp_{v}_{name} ");
                metrics.lines().find_map(|line| line.strip_prefix(&sample))
            })
            .map(|value| value.parse::<f64>().unwrap())
            .sum()
    };
    assert!(
        (measured("latency_seconds_count") - 1.0).abs() < 0.1,
        "{metrics}"
    );
    assert!((measured("migration_duration_seconds_count") - 1.0).abs() < 0.1);

    let (_, list) = source.get("/v1/migrations").await;
    assert_eq!(list["migrations"].as_array().unwrap().len(), 1);
    let (_, incoming) = hosts[1].1.get(&format!("/v1/incoming/{id}")).await;
    assert_eq!(incoming["guest"], "here", "{incoming}");
    for (_plane, server, _qemu) in hosts {
        server.stop().await;
    }
}

/// A migration may run over the NIC, so NICs are left alone as long as one does.
#[tokio::test]
async fn no_nic_is_changed_while_a_migration_runs() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("qmp")).unwrap();
    let _plane = DataPlane::start(&folder.path().join("attach.sock"));
    let server = Server::start(folder.path(), &[]).await;
    attached(&server).await;
    let qemu = Qemu::start(&releases()[0], &folder.path().join("qmp"), "vm", true);
    let session = "0102030405060708090a0b0c0d0e0f10";
    let request = json!({ "session": session, "qmp": qemu.monitor });
    let (status, view) = server.post("/v1/incoming", request).await;
    assert_eq!(status, 201, "{view}");
    let revert = json!({ "nic": "0000:ff:1f.7" });
    let apply = json!({ "profile": "[nic]\npci = \"0000:ff:1f.7\"\n" });
    for (path, body) in [("/v1/nics/revert", &revert), ("/v1/nics/apply", &apply)] {
        let (status, problem) = server.post(path, body.clone()).await;
        assert_eq!(
            (status, &problem["type"]),
            (409, &json!("urn:dwcp:problem:migrations_run")),
            "{problem}"
        );
    }
    let cancelled = server.request("DELETE", &format!("/v1/incoming/{session}"));
    assert_eq!(api_support::answer(cancelled).await.0, 200);
    for (path, body) in [("/v1/nics/revert", revert), ("/v1/nics/apply", apply)] {
        let (status, problem) = server.post(path, body).await;
        assert_eq!(status, 404, "{problem}");
    }
    server.stop().await;
}

/// A collector that keeps what it is sent, and is one of HTTP alone.
async fn collector() -> (String, std::sync::Arc<std::sync::Mutex<Vec<Vec<u8>>>>) {
    let kept = std::sync::Arc::<std::sync::Mutex<Vec<Vec<u8>>>>::default();
    let takes = kept.clone();
    let take = move |body: axum::body::Bytes| {
        takes.lock().unwrap().push(body.to_vec());
        std::future::ready(())
    };
    let router = axum::Router::new().route("/v1/traces", axum::routing::post(take));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (endpoint, kept)
}

/// One trace of a migration, with spans of both hosts; none of one that is not traced.
#[tokio::test]
async fn a_migration_is_one_trace_across_both_hosts() {
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use prost::Message;
    for share in ["1", "0"] {
        let (endpoint, kept) = collector().await;
        let folder = tempfile::tempdir().unwrap();
        let release = &releases()[0];
        let mut hosts = Vec::new();
        for name in ["a", "b"] {
            let folder = folder.path().join(name);
            std::fs::create_dir_all(folder.join("qmp")).unwrap();
            let plane = DataPlane::start(&folder.join("attach.sock"));
            let traced = ["--trace-endpoint", &endpoint, "--trace-share", share];
            let server = Server::start(&folder, &traced).await;
            attached(&server).await;
            let qemu = Qemu::start(release, &folder.join("qmp"), "vm", name == "b");
            hosts.push((plane, server, qemu));
        }
        let request = json!({
            "vm": { "qmp": hosts[0].2.monitor, "name": "guest" },
            "destination": { "api": hosts[1].1.url(""), "qmp": hosts[1].2.monitor, "token": TOKEN },
        });
        let (status, view) = hosts[0].1.post("/v1/migrations", request).await;
        assert_eq!(status, 201, "{view}");
        let id = view["id"].as_str().unwrap().to_owned();
        let path = format!("/v1/migrations/{id}");
        let over = |view: &Value| view["state"] == "completed";
        hosts[0].1.until(&path, over).await;
        let path = format!("/v1/incoming/{id}");
        hosts[1].1.until(&path, over).await;
        // Its last look at the arrival comes a moment after.
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        // What is left goes out when they stop.
        for (_plane, server, _qemu) in hosts {
            server.stop().await;
        }
        let mut spans = Vec::new();
        for body in kept.lock().unwrap().iter() {
            let request = ExportTraceServiceRequest::decode(body.as_slice()).unwrap();
            for scope in request
                .resource_spans
                .into_iter()
                .flat_map(|one| one.scope_spans)
            {
                spans.extend(scope.spans);
            }
        }
        if share == "0" {
            assert!(spans.is_empty(), "{spans:?}");
            continue;
        }
        let of = |name: &str| {
            let found = spans.iter().find(|span| span.name == name);
            found.unwrap_or_else(|| panic!("no span {name} in {spans:?}"))
        };
        let hex = |bytes: &[u8]| {
            bytes
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect::<String>()
        };
        assert!(spans.iter().all(|span| hex(&span.trace_id) == id));
        let (whole, arrival) = (of("migration"), of("arrival"));
        assert!(whole.parent_span_id.is_empty());
        assert_eq!(arrival.parent_span_id, whole.span_id, "below its source's");
        let under = |of: &[u8]| {
            spans
                .iter()
                .filter(|span| span.parent_span_id == of)
                .count()
        };
        assert!(
            under(&whole.span_id) >= 3,
            "its phases, and the arrival: {spans:?}"
        );
        assert!(under(&arrival.span_id) >= 1, "{spans:?}");
        let word = |key: &str| {
            let found = whole.attributes.iter().find(|one| one.key == key);
            format!(
                "{:?}",
                found.unwrap_or_else(|| panic!("no {key}: {whole:?}")).value
            )
        };
        assert!(word("dwcp.vm").contains("guest") && word("dwcp.state").contains("completed"));
        assert!(word("dwcp.downtime_ms").contains("IntValue"));
        assert!(spans.iter().all(|span| {
            span.start_time_unix_nano > 0 && span.end_time_unix_nano >= span.start_time_unix_nano
        }));
    }
}
