//! Two nodes, a link between them, a guest at the first and a hypervisor that waits at the second.

use std::time::{Duration, Instant};

use dwcp_lab::guest::{Arrival, Guest, GuestConfig, GuestError};
use dwcp_lab::link::{LinkConfig, Shape, WanLink};
use dwcp_lab::netns::{Cable, Host};
use dwcp_lab::qemu::QemuVersion;
use dwcp_lab::stack::{Node, NodeConfig};
use dwcp_lab::watchdog::poll_until;
use serde_json::{Value, json};

/// How long anything may take before a test gives up on it.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// How a scene is set.
#[derive(Clone, Debug)]
pub struct SceneConfig {
    /// The line, each way.
    pub shape: Shape,
    /// Guest memory, MiB.
    pub guest_mb: u32,
    /// Pages the guest changes per second.
    pub dirty_pages_per_s: u32,
    /// Highest version at the source and at the destination.
    pub versions: (u32, u32),
    /// Highest version that the migration may use.
    pub max_version: &'static str,
    /// Extra connections of the hypervisor.
    pub multifd: u32,
    /// How the destination begins.
    pub arrival: Arrival,
    /// QEMU at the destination.
    pub destination_qemu: QemuVersion,
    /// The hypervisor's downtime limit, ms.
    pub downtime_limit_ms: u64,
    /// How long the link may be gone, ms.
    pub resume_limit_ms: u64,
    /// The data planes listen on every address of their hosts, so that these may change.
    pub listen_any: bool,
    /// When it turns into post-copy, as the API says it.
    pub postcopy: Value,
    /// A broken post-copy goes on by itself.
    pub auto_recover: bool,
    /// More lines for the configuration of each data plane.
    pub dataplane_extra: [String; 2],
}

impl Default for SceneConfig {
    fn default() -> Self {
        Self {
            shape: Shape::new(400.0, 5.0, 0.0),
            guest_mb: 192,
            dirty_pages_per_s: 300,
            versions: (3, 3),
            max_version: "v3",
            multifd: 0,
            arrival: Arrival::Run,
            destination_qemu: QemuVersion::V10,
            downtime_limit_ms: 300,
            resume_limit_ms: 30_000,
            listen_any: false,
            postcopy: json!(false),
            auto_recover: true,
            dataplane_extra: [const { String::new() }; 2],
        }
    }
}

/// The hosts and the link, without a guest.
pub struct Ground {
    /// The first host.
    pub a: Host,
    /// The second host.
    pub b: Host,
    /// The migration network.
    pub link: WanLink,
    /// The management network.
    pub management: Cable,
}

impl Ground {
    /// Two hosts and the link between them.
    #[must_use]
    #[allow(
        clippy::expect_used,
        reason = "a test has nothing better to do than to stop"
    )]
    pub fn new(shape: Shape) -> Self {
        let (a, b) = (Host::new("a").expect("host"), Host::new("b").expect("host"));
        let link = WanLink::start(&a, &b, LinkConfig::symmetric(shape)).expect("link");
        let management = Cable::management(&a, &b, 1).expect("management network");
        Self {
            a,
            b,
            link,
            management,
        }
    }
}

/// See the module.
pub struct Scene<'g> {
    /// The first node.
    pub a: Node<'g>,
    /// The second node.
    pub b: Node<'g>,
    /// The guest.
    pub source: Guest,
    /// The hypervisor that waits for it.
    pub destination: Guest,
    /// The hosts.
    pub ground: &'g Ground,
    config: SceneConfig,
}

#[allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test has nothing better to do than to stop"
)]
impl<'g> Scene<'g> {
    /// Sets the scene.
    #[must_use]
    pub fn new(ground: &'g Ground, config: SceneConfig) -> Self {
        let node = |host, name, data, management, version, extra: &str| {
            let mut node = NodeConfig::new(name, data, management);
            node.max_version = version;
            node.listen_any = config.listen_any;
            node.dataplane_extra = format!("store_bytes = 67108864\n{extra}");
            Node::start(host, node).expect("node")
        };
        let [extra_a, extra_b] = &config.dataplane_extra;
        let (link, management) = (&ground.link, &ground.management);
        let a = node(
            &ground.a,
            "a",
            link.a,
            management.a,
            config.versions.0,
            extra_a,
        );
        let b = node(
            &ground.b,
            "b",
            link.b,
            management.b,
            config.versions.1,
            extra_b,
        );
        let (source, destination) = guests(ground, &config).expect("guests");
        Self {
            a,
            b,
            source,
            destination,
            ground,
            config,
        }
    }

    /// Sets the scene, begins the migration and acts on it.
    pub fn migrating(config: SceneConfig, act: impl FnOnce(&mut Scene<'_>, &str)) {
        let ground = Ground::new(config.shape);
        let mut scene = Scene::new(&ground, config);
        let id = scene.start();
        act(&mut scene, &id);
    }

    /// Begins the migration and gives its id.
    pub fn start(&self) -> String {
        let (status, view) = self.request();
        assert_eq!(status, 201, "{view}");
        view["id"].as_str().expect("an id").to_owned()
    }

    /// Asks for the migration.
    pub fn request(&self) -> (u16, Value) {
        self.request_for(&self.source, &self.destination)
    }

    /// Asks for a migration of another pair of hypervisors.
    pub fn request_for(&self, source: &Guest, destination: &Guest) -> (u16, Value) {
        let body = json!({
            "vm": { "qmp": source.control_monitor() },
            "destination": { "api": self.b.url(), "qmp": destination.control_monitor() },
            "options": {
                "max_version": self.config.max_version,
                "multifd_channels": self.config.multifd,
                "downtime_limit_ms": self.config.downtime_limit_ms,
                "resume_limit_ms": self.config.resume_limit_ms,
                "postcopy": self.config.postcopy,
                "postcopy_auto_recover": self.config.auto_recover,
            },
        });
        self.a
            .api("POST", "/v1/migrations", Some(&body))
            .expect("an answer")
    }

    /// One more guest and the hypervisor that waits for it.
    pub fn more_guests(&self) -> (Guest, Guest) {
        guests(self.ground, &self.config).expect("guests")
    }

    /// The migration as the source shows it.
    pub fn view(&self, id: &str) -> Value {
        self.a
            .api("GET", &format!("/v1/migrations/{id}"), None)
            .expect("an answer")
            .1
    }

    /// Waits until `wanted` holds of the migration.
    pub fn wait(&self, id: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        poll_until(PATIENCE, || {
            last = self.view(id);
            wanted(&last).then(|| last.clone())
        })
        .unwrap_or_else(|| panic!("never came: {what}; last: {last:#}"))
    }

    /// Waits until the migration is in `state`, or panics when it ends otherwise.
    pub fn wait_state(&self, id: &str, state: &str) -> Value {
        let ends = ["completed", "failed", "cancelled"];
        let view = self.wait(id, state, |view| {
            view["state"] == state || ends.iter().any(|end| view["state"] == *end)
        });
        assert_eq!(view["state"], state, "{view:#}");
        view
    }

    /// Waits until some of the guest is across but not all.
    pub fn wait_underway(&self, id: &str) -> Value {
        self.wait(id, "bytes on their way", |view| {
            view["state"] == "active" && view["bytes"]["hypervisor"].as_u64().unwrap_or(0) > 8 << 20
        })
    }

    /// The guest arrived: it runs there, every byte of its memory is right, it never ran twice.
    pub fn check_arrived(&mut self, id: &str) -> Value {
        let view = self.wait_state(id, "completed");
        assert_eq!(view["guest"], "destination", "{view:#}");
        assert_eq!(
            self.source.qmp().query_status().expect("status"),
            "postmigrate"
        );
        assert_eq!(
            self.destination.qmp().query_status().expect("status"),
            "running"
        );
        let verdict = self.destination.verify().expect("a verdict");
        assert!(verdict.ok, "{}", verdict.line);
        assert_eq!(
            self.source.ticks().doubled(),
            0,
            "the guest ran on both sides"
        );
        let held = view["held_bytes_max"].as_u64().expect("held");
        let limit = view["held_bytes_limit"].as_u64().expect("limit");
        assert!(held <= limit, "{held} bytes held, {limit} allowed");
        assert_eq!(
            view["bytes"]["hypervisor"], view["bytes"]["delivered"],
            "{view:#}"
        );
        view
    }

    /// The guest stayed: it runs at the source alone, every byte of its memory right.
    pub fn check_stayed(&mut self) {
        let runs = poll_until(PATIENCE, || {
            (self.source.qmp().query_status().ok()? == "running").then_some(())
        });
        assert!(
            runs.is_some(),
            "the source does not run: {:?}",
            self.source.qmp().query_status()
        );
        let verdict = self.source.verify().expect("a verdict");
        assert!(verdict.ok, "{}", verdict.line);
        assert_eq!(
            self.source.ticks().doubled(),
            0,
            "the guest ran on both sides"
        );
        let gone = poll_until(PATIENCE, || {
            let ended = self.destination.process().ended().is_some();
            let waits = self
                .destination
                .qmp()
                .query_status()
                .is_ok_and(|state| state == "inmigrate");
            (ended || waits).then_some(())
        });
        assert!(
            gone.is_some(),
            "the destination is neither gone nor waiting"
        );
    }

    /// Longest silence of the guest since `from`, ms.
    pub fn gap_ms(&self, from: Instant) -> f64 {
        self.source.ticks().longest_gap_ms(from, Instant::now())
    }
}

fn guests(ground: &Ground, config: &SceneConfig) -> Result<(Guest, Guest), GuestError> {
    let source = Guest::saved(Some(&ground.a), GuestConfig::sized(config.guest_mb))?;
    let destination = Guest::start_incoming(
        Some(&ground.b),
        &source,
        config.destination_qemu,
        config.arrival,
    )?;
    source.set_rate(config.dirty_pages_per_s)?;
    Ok((source, destination))
}
