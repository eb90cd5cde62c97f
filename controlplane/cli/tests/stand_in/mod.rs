//! An API that plays one migration with a given end. It is a double because no hypervisor fails,
//! hangs or loses its control plane on request.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

pub const ID: &str = "0102030405060708090a0b0c0d0e0f10";

struct Play {
    end: String,
    cancelled: AtomicBool,
    asked: AtomicBool,
    followers: AtomicUsize,
    looks: AtomicUsize,
    started: Mutex<Value>,
}

#[derive(Clone)]
struct Shared(Arc<Play>);

pub struct StandIn {
    address: String,
    play: Arc<Play>,
    task: JoinHandle<()>,
}

impl Play {
    fn view(&self, state: &str, progress: f64, guest: &str) -> Value {
        json!({
            "id": ID,
            "vm": { "qmp": "/run/a.qmp", "name": "guest" },
            "destination": { "api": "http://b:1", "qmp": "/run/b.qmp" },
            "state": state,
            "phase": state,
            "progress": progress,
            "total_ms": 1_500,
            "downtime_ms": 42,
            "version": "v3",
            "bytes": { "hypervisor": 4_000_000, "wire": 1_000_000, "saved_fraction": 0.75 },
            "rates": { "hypervisor_bytes_per_s": 4e6, "wire_bytes_per_s": 1e6 },
            "guest": guest,
            "failure": null,
            "rollback": null,
            "notes": [],
        })
    }

    /// What is seen at the n-th look.
    fn at(&self, look: usize) -> Value {
        if self.cancelled.load(Ordering::SeqCst) {
            return self.view("cancelled", 0.5, "source");
        }
        if look < 2 || matches!(self.end.as_str(), "forever" | "deaf") {
            return self.view("active", 0.3, "source");
        }
        match self.end.as_str() {
            "failed" | "failed_unknown" => {
                let guest = if self.end == "failed" {
                    "source"
                } else {
                    "undecided"
                };
                let mut view = self.view("failed", 0.6, guest);
                view["failure"] =
                    json!({ "code": "peer_lost", "detail": "it is gone", "cure": "plug it in" });
                view
            }
            "cancelled" => self.view("cancelled", 0.5, "source"),
            _ => self.view("completed", 1.0, "destination"),
        }
    }

    fn look(&self) -> Value {
        self.at(self.looks.fetch_add(1, Ordering::SeqCst))
    }
}

impl StandIn {
    pub async fn start(address: &str, end: &str) -> Self {
        // The address of one that was just stopped may take a moment to be free.
        let listener = loop {
            match TcpListener::bind(address).await {
                Ok(listener) => break listener,
                Err(error) => {
                    assert_ne!(address, "127.0.0.1:0", "{error}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        };
        let address = listener.local_addr().unwrap().to_string();
        let play = Arc::new(Play {
            end: end.to_owned(),
            cancelled: AtomicBool::new(false),
            asked: AtomicBool::new(false),
            followers: AtomicUsize::new(0),
            looks: AtomicUsize::new(0),
            started: Mutex::default(),
        });
        let router = Router::new()
            .route("/v1/migrations", post(begin).get(list))
            .route("/v1/migrations/{id}", get(view).delete(cancel))
            .route("/v1/migrations/{id}/events", get(events))
            .route("/v1/feature-flags/force-v1", post(force))
            .route("/v1/perf/counters", get(counters))
            .route("/v1/perf/flamegraph", get(flamegraph))
            .route("/v1/perf/hardware", get(hardware))
            .with_state(Shared(Arc::clone(&play)));
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            address,
            play,
            task,
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn started(&self) -> Value {
        self.play.started.lock().unwrap().clone()
    }

    pub fn cancelled(&self) -> bool {
        self.play.cancelled.load(Ordering::SeqCst)
    }

    pub async fn followed(&self, times: usize) {
        while self.play.followers.load(Ordering::SeqCst) < times {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub async fn asked_to_cancel(&self) {
        while !self.play.asked.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Dies, connections and all.
    pub async fn stop(self) -> String {
        self.play.asked.store(true, Ordering::SeqCst);
        self.play.followers.store(usize::MAX, Ordering::SeqCst);
        self.task.abort();
        let _ = self.task.await;
        self.address
    }
}

async fn begin(State(play): State<Shared>, Json(body): Json<Value>) -> impl IntoResponse {
    *play.0.started.lock().unwrap() = body;
    play.0.looks.store(0, Ordering::SeqCst);
    (StatusCode::CREATED, Json(play.0.at(0)))
}

async fn list(State(play): State<Shared>) -> Json<Value> {
    let mut view = play.0.view("active", 0.3, "source");
    if play.0.looks.fetch_add(1, Ordering::SeqCst) >= 2 {
        view["rollback"] = json!({ "thrown_ns": 1, "first_v1_batch_ns": 2, "rollback_us": 900 });
    }
    Json(json!({ "migrations": [view] }))
}

async fn view(State(play): State<Shared>) -> Json<Value> {
    Json(play.0.look())
}

async fn cancel(State(play): State<Shared>) -> Json<Value> {
    play.0.asked.store(true, Ordering::SeqCst);
    if play.0.end == "deaf" {
        std::future::pending::<()>().await;
    }
    play.0.cancelled.store(true, Ordering::SeqCst);
    Json(play.0.look())
}

async fn force() -> Json<Value> {
    Json(json!({
        "force_v1": true, "applied": true, "applied_us": 37, "persisted": true, "note": null,
    }))
}

async fn events(State(play): State<Shared>) -> Response {
    if play.0.end == "no_stream" {
        return StatusCode::NOT_FOUND.into_response();
    }
    let play = play.0;
    let events = stream::unfold((play, 0usize), |(play, shown)| async move {
        if play.followers.load(Ordering::SeqCst) == usize::MAX {
            return None;
        }
        if shown == 1 {
            play.followers.fetch_add(1, Ordering::SeqCst);
        }
        if shown > 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let view = play.look();
        let event = Event::default()
            .event("migration")
            .id(shown.to_string())
            .data(view.to_string());
        Some((Ok::<_, Infallible>(event), (play, shown + 1)))
    });
    Sse::new(events).into_response()
}

/// A worker that is half busy, and moves 1 MB every time somebody looks.
async fn counters(State(play): State<Shared>) -> Json<Value> {
    let look = play.0.looks.fetch_add(1, Ordering::SeqCst) as u64 + 1;
    let stage = json!({
        "stage": "codec", "busy_ns": look * 500_000_000,
        "bytes_in": look * 1_000_000, "bytes_out": look * 250_000, "batches": look,
    });
    Json(json!({
        "taken_ns": look * 1_000_000_000,
        "workers": [{
            "worker": 0,
            "busy_ns": look * 500_000_000,
            "stages": [stage],
            "counters": { "parked_ns_total": look * 500_000_000, "sessions": 2 },
        }],
    }))
}

async fn flamegraph() -> &'static str {
    "worker-0;[codec];encode 7\n"
}

async fn hardware() -> Json<Value> {
    Json(json!({
        "window_ns": 1_000_000_000,
        "threads": [{ "thread": 5, "name": "worker-0", "counts": { "running_ns": 900 } }],
        "absent": { "cycles": "this machine has no such counter" },
    }))
}
