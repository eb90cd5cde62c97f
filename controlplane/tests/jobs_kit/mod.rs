//! What the tests of jobs stand on: real hypervisors, a control plane that can be stopped like a
//! process, and the stand-in data plane as a process that can be killed.

pub mod fake;

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use axum::extract::{Path as UrlPath, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use dwcp_controlplane::host::{Host, HostStatus};
use dwcp_controlplane::jobs::view::MigrationState;
use dwcp_controlplane::jobs::{
    IncomingRequest, JobError, Jobs, JobsConfig, MigrationRequest, MigrationView,
};
use dwcp_controlplane::qmp::{MonitorPath, Qmp, RunState};
use dwcp_controlplane::store::Store;
use serde_json::{Value, json};
use tokio::sync::oneshot;

/// A hang ends here; nothing is asserted about how fast anything is.
pub const WATCHDOG: Duration = Duration::from_secs(120);

/// Releases of the hypervisor that are there.
pub fn releases() -> Vec<Release> {
    let old = std::env::var_os("DWCP_QEMU_7_2")
        .map_or_else(
            || PathBuf::from("/var/cache/dwcp/lab/qemu-7.2"),
            PathBuf::from,
        )
        .join("usr");
    let mut found = vec![Release {
        program: "qemu-system-x86_64".into(),
        data: None,
    }];
    if old.join("bin/qemu-system-x86_64").exists() {
        found.push(Release {
            program: old.join("bin/qemu-system-x86_64"),
            data: Some(old),
        });
    } else {
        eprintln!("QEMU 7.2 is not in {}: its part is not run", old.display());
    }
    found
}

/// One release of the hypervisor.
#[derive(Clone)]
pub struct Release {
    program: PathBuf,
    data: Option<PathBuf>,
}

/// A hypervisor with a small idle guest.
pub struct Qemu {
    pub monitor: PathBuf,
    process: Child,
}

impl Qemu {
    pub fn start(release: &Release, dir: &Path, name: &str, incoming: bool) -> Self {
        Self::start_with(release, dir, name, incoming, &[])
    }

    pub fn start_with(
        release: &Release,
        dir: &Path,
        name: &str,
        incoming: bool,
        more: &[&str],
    ) -> Self {
        let monitor = dir.join(format!("{name}.qmp"));
        let mut command = Command::new(&release.program);
        if let Some(data) = &release.data {
            let share = data.join("share");
            command
                .arg("-L")
                .arg(share.join("qemu"))
                .arg("-L")
                .arg(share.join("seabios"));
        }
        command
            .args([
                "-accel",
                "tcg,tb-size=32",
                "-m",
                "64",
                "-machine",
                "pc-q35-7.2",
            ])
            .args(["-display", "none", "-nodefaults", "-qmp"])
            .arg(format!("unix:{},server=on,wait=off", monitor.display()));
        if incoming {
            command.args(["-incoming", "defer"]);
        }
        command.args(more);
        let process = command
            .stdin(Stdio::null())
            .spawn()
            .expect("QEMU is installed");
        let qemu = Self { monitor, process };
        wait(|| qemu.monitor.exists().then_some(()));
        qemu
    }

    pub fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    pub fn has_ended(&mut self) -> bool {
        self.process.try_wait().unwrap().is_some()
    }

    /// Connects, waiting for a monitor that still serves somebody else.
    pub async fn qmp(&self) -> Qmp {
        let path = MonitorPath::check(&self.monitor, &[self.monitor.parent().unwrap().to_owned()])
            .unwrap();
        let until = Instant::now() + WATCHDOG;
        loop {
            match Qmp::connect(&path).await {
                Ok(qmp) => return qmp,
                Err(error) => assert!(Instant::now() < until, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub async fn state(&self) -> RunState {
        self.qmp().await.run_state().await.unwrap()
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The stand-in data plane as a process of its own: this test binary, started anew.
pub struct DataPlane {
    process: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

/// Names the attach socket to the process that is to be the data plane.
const FAKE_AT: &str = "DWCP_TEST_FAKE_AT";

/// The body of the test `fake_data_plane`, which is the process's way in.
pub fn fake_entry() {
    if let Some(path) = std::env::var_os(FAKE_AT) {
        fake::run(Path::new(&path));
    }
}

impl DataPlane {
    pub fn start(attach: &Path) -> Self {
        let _ = std::fs::remove_file(attach);
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "fake_data_plane", "--nocapture"])
            .env(FAKE_AT, attach)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let orders = process.stdin.take().unwrap();
        let answers = BufReader::new(process.stdout.take().unwrap());
        wait(|| attach.exists().then_some(()));
        Self {
            process,
            orders,
            answers,
        }
    }

    pub fn order(&mut self, order: &str) {
        writeln!(self.orders, "{order}").unwrap();
        let mut line = String::new();
        while line.trim() != "obeyed" {
            line.clear();
            assert_ne!(
                self.answers.read_line(&mut line).unwrap(),
                0,
                "the data plane ended"
            );
        }
    }

    pub fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for DataPlane {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A control plane on a thread and an event loop of its own. Dropping it ends all its tasks at once,
/// as the end of its process would.
pub struct ControlPlane {
    pub api: String,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl ControlPlane {
    /// `listen`: an address to come back to, or port 0.
    pub fn start(dir: &Path, listen: SocketAddr) -> Self {
        let (stop, stopped) = oneshot::channel();
        let (ready, address) = std::sync::mpsc::channel();
        let dir = dir.to_owned();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::bind(listen).await.unwrap();
                let (host, _task) = Host::spawn(dir.join("dp.sock"));
                let config = JobsConfig {
                    peer_tls: dwcp_controlplane::tls::client(None).unwrap(),
                    socket_dir: dir.join("s"),
                    qmp_allowed_dirs: vec![dir.clone()],
                    peer_token: None,
                    sampling: Default::default(),
                };
                let store = Store::open(&dir.join("jobs.redb")).unwrap();
                let jobs = Jobs::new(host.clone(), store, config).unwrap();
                ready.send(listener.local_addr().unwrap()).unwrap();
                tokio::select! {
                    outcome = axum::serve(listener, router(jobs, host)).into_future() => outcome.unwrap(),
                    _ = stopped => {}
                }
            });
        });
        let address = address.recv().unwrap();
        let plane = Self {
            api: format!("http://{address}"),
            stop: Some(stop),
            thread: Some(thread),
        };
        eprintln!("control plane at {}", plane.api);
        plane
    }

    pub fn address(&self) -> SocketAddr {
        self.api.trim_start_matches("http://").parse().unwrap()
    }

    pub fn stop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }

    pub async fn attached(&self) {
        let until = Instant::now() + WATCHDOG;
        loop {
            let status = call(reqwest::Method::GET, &format!("{}/status", self.api), None)
                .await
                .1;
            if status["state"] == "connected" {
                return;
            }
            assert!(Instant::now() < until, "{status}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn get(&self, id: &str) -> MigrationView {
        let url = format!("{}/v1/migrations/{id}", self.api);
        serde_json::from_value(call(reqwest::Method::GET, &url, None).await.1).unwrap()
    }

    /// Polls until the view is as wanted.
    pub async fn until(&self, id: &str, wanted: impl Fn(&MigrationView) -> bool) -> MigrationView {
        let until = Instant::now() + WATCHDOG;
        loop {
            let view = self.get(id).await;
            if wanted(&view) {
                return view;
            }
            assert!(
                Instant::now() < until && !view.state.is_final(),
                "{view:#?}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn ended(&self, id: &str) -> MigrationView {
        let view = self.until(id, |view| view.state.is_final()).await;
        eprintln!("{}", serde_json::to_string(&view).unwrap());
        view
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Two hosts and a guest.
pub struct Scene {
    pub dir: tempfile::TempDir,
    pub planes: [DataPlane; 2],
    pub controls: [ControlPlane; 2],
    pub source: Qemu,
    pub destination: Qemu,
}

impl Scene {
    pub async fn new(release: &Release) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let hosts = [dir.path().join("a"), dir.path().join("b")];
        for host in &hosts {
            std::fs::create_dir(host).unwrap();
        }
        let planes = hosts
            .each_ref()
            .map(|host| DataPlane::start(&host.join("dp.sock")));
        let any = "127.0.0.1:0".parse().unwrap();
        let controls = hosts.each_ref().map(|host| ControlPlane::start(host, any));
        let source = Qemu::start(release, &hosts[0], "vm", false);
        let destination = Qemu::start(release, &hosts[1], "vm", true);
        for control in &controls {
            control.attached().await;
        }
        Self {
            dir,
            planes,
            controls,
            source,
            destination,
        }
    }

    pub fn host(&self, which: usize) -> PathBuf {
        self.dir.path().join(["a", "b"][which])
    }

    pub fn request(&self, options: &Value) -> Value {
        json!({
            "vm": { "qmp": self.source.monitor, "name": "test" },
            "destination": { "api": self.controls[1].api, "qmp": self.destination.monitor },
            "options": options,
        })
    }

    /// Starts the migration; gives its id.
    pub async fn start(&self, options: &Value) -> String {
        let url = format!("{}/v1/migrations", self.controls[0].api);
        let (status, view) = call(reqwest::Method::POST, &url, Some(self.request(options))).await;
        assert_eq!(status, 201, "{view}");
        view["id"].as_str().unwrap().to_owned()
    }

    /// Nothing is left of an ended migration: no socket, no session.
    pub async fn is_clean(&self) {
        for (which, control) in self.controls.iter().enumerate() {
            let until = Instant::now() + WATCHDOG;
            loop {
                let url = format!("{}/sessions", control.api);
                let sessions = call(reqwest::Method::GET, &url, None).await.1;
                let sockets = std::fs::read_dir(self.host(which).join("s"))
                    .unwrap()
                    .count();
                if sessions == json!(0) && sockets == 0 {
                    break;
                }
                assert!(
                    Instant::now() < until,
                    "host {which}: {sessions} sessions, {sockets} sockets"
                );
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

/// One call of the API.
pub async fn call(method: reqwest::Method, url: &str, body: Option<Value>) -> (u16, Value) {
    let client = reqwest::Client::builder()
        .no_proxy()
        .tls_backend_preconfigured(dwcp_controlplane::tls::client(None).unwrap())
        .timeout(WATCHDOG)
        .build()
        .unwrap();
    let mut request = client.request(method, url);
    if let Some(body) = body {
        request = request.json(&body);
    }
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    (status, response.json().await.unwrap_or(Value::Null))
}

/// Waits, up to the watchdog.
pub fn wait<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + WATCHDOG;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "watchdog");
        thread::sleep(Duration::from_millis(10));
    }
}

pub const COMPLETED: MigrationState = MigrationState::Completed;

type Answer = (StatusCode, Json<Value>);

fn answer<T: serde::Serialize>(good: StatusCode, outcome: Result<T, JobError>) -> Answer {
    match outcome {
        Ok(value) => (good, Json(serde_json::to_value(value).unwrap())),
        Err(error) => (
            StatusCode::from_u16(error.http_status()).unwrap(),
            Json(
                json!({ "type": error.code(), "detail": error.to_string(), "cure": error.cure() }),
            ),
        ),
    }
}

fn found<T: serde::Serialize>(id: String, view: Option<T>) -> Answer {
    answer(StatusCode::OK, view.ok_or(JobError::Unknown(id)))
}

/// The smallest way to reach jobs over HTTP.
fn router(jobs: Jobs, host: Host) -> Router {
    type J = State<Jobs>;
    let status = host.clone();
    Router::new()
        .route(
            "/status",
            get(move || async move { Json::<HostStatus>(status.status()) }),
        )
        .route(
            "/sessions",
            get(move || async move { Json(host.sessions().map_or(0, |sessions| sessions.len())) }),
        )
        .route(
            "/v1/migrations",
            post(
                async |State(jobs): J, Json(request): Json<MigrationRequest>| {
                    answer(StatusCode::CREATED, jobs.start(request).await)
                },
            ),
        )
        .route(
            "/v1/migrations/{id}",
            get(async |State(jobs): J, UrlPath(id): UrlPath<String>| {
                let view = jobs.get(&id);
                found(id, view)
            })
            .delete(async |State(jobs): J, UrlPath(id): UrlPath<String>| {
                answer(StatusCode::OK, jobs.cancel(&id).await)
            })
            .patch(
                async |State(jobs): J, UrlPath(id): UrlPath<String>, Json(body): Json<Value>| {
                    if let Some(to) = body["dataplane"].as_str() {
                        return answer(StatusCode::OK, jobs.redirect(&id, to).await);
                    }
                    let limit = body["bandwidth_limit_bytes_per_s"].as_u64().unwrap();
                    answer(StatusCode::OK, jobs.limit(&id, limit).await)
                },
            ),
        )
        .route(
            "/v1/incoming",
            post(
                async |State(jobs): J, Json(request): Json<IncomingRequest>| {
                    answer(StatusCode::CREATED, jobs.incoming_open(request).await)
                },
            ),
        )
        .route(
            "/v1/incoming/{id}",
            get(async |State(jobs): J, UrlPath(id): UrlPath<String>| {
                let view = jobs.incoming_get(&id);
                found(id, view)
            })
            .delete(async |State(jobs): J, UrlPath(id): UrlPath<String>| {
                answer(StatusCode::OK, jobs.incoming_cancel(&id).await)
            }),
        )
        .route(
            "/v1/incoming/{id}/verdict",
            post(async |State(jobs): J, UrlPath(id): UrlPath<String>| {
                answer(StatusCode::OK, jobs.incoming_verdict(&id).await)
            }),
        )
        .with_state(jobs)
}
