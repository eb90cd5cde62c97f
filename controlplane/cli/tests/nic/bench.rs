//! A control plane on a host of its own, whose PCI tree is made of files and whose interfaces are real: `mgmt0`,
//! which the host needs, and `mig0` for migrations. In: what `dwcpctl nic` is told. Out: what it said. Promise:
//! all of it goes with the value.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use clap::Parser;
use dwcp_controlplane::config::{Args, Config};
use dwcp_controlplane::node;
use dwcp_lab::netns::Host;
use dwcp_nic_config::kernel::Kernel;
use dwcp_nic_config::linux::Linux;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::fake::{Machine, NicSpec};

const TOKEN: &str = "0123456789abcdef-token";
/// Where `mig0` is.
pub const NIC: &str = "0000:3b:00.0";

/// How a command ended.
pub struct Said {
    /// Its exit status.
    pub code: i32,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
}

/// A host with a NIC that it needs and one for migrations, and its control plane.
pub struct Bench {
    host: Host,
    /// Its files.
    pub machine: Machine,
    folder: tempfile::TempDir,
}

fn ip(host: &Host, arguments: &str) {
    let status = host
        .command("ip")
        .args(arguments.split(' '))
        .status()
        .unwrap();
    assert!(status.success(), "ip {arguments}");
}

/// Sets one up.
pub fn bench() -> Bench {
    let host = Host::new("ctl").unwrap();
    let machine = Machine::new();
    for (pci, name) in [("0000:02:00.0", "mgmt0"), (NIC, "mig0")] {
        ip(
            &host,
            &format!("link add {name} numrxqueues 4 numtxqueues 4 type veth peer name {name}x"),
        );
        ip(&host, &format!("link set {name}x up"));
        ip(&host, &format!("link set {name} up"));
        machine.plug(&NicSpec {
            node: 1,
            vfs_max: 4,
            rdma: Some("roce0"),
            ..NicSpec::new(pci, "ice", name)
        });
    }
    ip(&host, "addr add 10.9.0.1/24 dev mgmt0");
    ip(&host, "route add default via 10.9.0.2");
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, TOKEN).unwrap();
    std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o600)).unwrap();
    Bench {
        host,
        machine,
        folder,
    }
}

impl Bench {
    fn config(&self) -> Config {
        let path = |name: &str| self.folder.path().join(name).display().to_string();
        std::fs::write(path("c.toml"), "").unwrap();
        let mut args = vec!["x".to_owned()];
        for (flag, value) in [
            ("--config", path("c.toml")),
            ("--attach", path("dp.sock")),
            ("--state-dir", path("state")),
            ("--socket-dir", path("sockets")),
            ("--qmp-allowed-dirs", path("qmp")),
            ("--token-file", path("token")),
            ("--sysfs", self.machine.sys().display().to_string()),
            ("--procfs", self.machine.proc().display().to_string()),
        ] {
            args.extend([flag.to_owned(), value]);
        }
        Config::load(&Args::try_parse_from(args).unwrap()).unwrap()
    }

    /// Runs `work` beside a control plane on this host.
    pub fn beside_control_plane(&self, work: impl FnOnce(&dyn Fn(&[&str]) -> Said) + Send) {
        let config = self.config();
        let (stop, stopped) = watch::channel(false);
        let (ready, address) = mpsc::channel::<SocketAddr>();
        std::thread::scope(|scope| {
            let server = scope.spawn(|| {
                self.host
                    .enter(|| {
                        let runtime = tokio::runtime::Builder::new_current_thread()
                            .enable_all()
                            .build()
                            .unwrap();
                        runtime.block_on(async {
                            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                            ready.send(listener.local_addr().unwrap()).unwrap();
                            node::run(&config, listener, stopped).await.unwrap();
                        });
                    })
                    .unwrap();
            });
            let address = address.recv().unwrap();
            // Stopped even if the work fails, or the server would keep the test from ending.
            let stopper = Stopper(stop);
            work(&|args| self.ctl(address, args));
            drop(stopper);
            server.join().unwrap();
        });
    }

    fn ctl(&self, address: SocketAddr, args: &[&str]) -> Said {
        let mut command = self.host.command(env!("CARGO_BIN_EXE_dwcpctl"));
        command
            .env("DWCP_API", format!("http://{address}"))
            .env("DWCP_TOKEN", TOKEN)
            .env_remove("DWCP_TOKEN_FILE")
            .arg("nic")
            .args(args);
        let output = command.output().unwrap();
        Said {
            code: output.status.code().unwrap(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// A file of this text.
    pub fn profile(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// MTU and queues of the migration interface, as the kernel has them.
    pub fn state(&self) -> (u32, u32) {
        self.host
            .enter(|| {
                let kernel = Linux::default();
                let links = kernel.links().unwrap();
                let link = links.iter().find(|link| link.name == "mig0").unwrap();
                (link.mtu, kernel.channels("mig0").unwrap().unwrap().now.rx)
            })
            .unwrap()
    }
}

struct Stopper(watch::Sender<bool>);

impl Drop for Stopper {
    fn drop(&mut self) {
        self.0.send_replace(true);
    }
}

/// A path as an argument.
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
