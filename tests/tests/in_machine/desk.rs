//! An operator's desk inside a virtual machine: a control plane in a process of its own, and `dwcpctl`.
//!
//! In: what `dwcpctl nic` is told. Out: what it said, and what the machine is like then. Promises: the binaries
//! are those of this build; a control plane that was killed is gone before the next begins; what [`Desk::all`]
//! shows is what the kernel says at that moment.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use dwcp_lab::dir::LabDir;
use dwcp_lab::procs::Proc;
use dwcp_lab::stack::{API_PORT, binary};
use dwcp_lab::watchdog::poll_until;
use serde_json::{Value, json};

/// The emulated processor is slow, and starts from a shared folder.
const PATIENCE: Duration = Duration::from_secs(120);

/// See the module.
pub struct Desk {
    dir: LabDir,
    controlplane: Proc,
}

/// How a command ended.
pub struct Said {
    /// Its exit status.
    pub code: Option<i32>,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
}

impl Desk {
    /// Starts a control plane without a data plane.
    pub fn open() -> Self {
        let dir = LabDir::new("desk").unwrap();
        let token = dir.file("token");
        fs::write(&token, "0123456789abcdef0123456789abcdef").unwrap();
        fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
        let path = |name: &str| dir.file(name).display().to_string();
        let text = format!(
            "node = \"desk\"\nlisten = \"127.0.0.1:{API_PORT}\"\nattach = \"{}\"\n\
             state_dir = \"{}\"\nsocket_dir = \"{}\"\nqmp_allowed_dirs = [\"/tmp\"]\n\
             token_file = \"{}\"\n",
            path("attach"),
            path("state"),
            path("sessions"),
            path("token"),
        );
        fs::write(dir.file("controlplane.toml"), text).unwrap();
        let controlplane = start(&dir);
        let mut desk = Self { dir, controlplane };
        desk.wait_ready();
        desk
    }

    fn wait_ready(&mut self) {
        let ready = poll_until(PATIENCE, || {
            if self.controlplane.ended().is_some() {
                return Some(false);
            }
            (self.nic(&["list"]).code == Some(0)).then_some(true)
        });
        assert_eq!(ready, Some(true), "the control plane does not answer");
    }

    fn ctl(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary("dwcpctl").unwrap());
        command
            .env("DWCP_API", format!("http://127.0.0.1:{API_PORT}"))
            .env("DWCP_TOKEN_FILE", self.dir.file("token"))
            .arg("nic")
            .args(arguments);
        command
    }

    /// `dwcpctl nic …`
    pub fn nic(&self, arguments: &[&str]) -> Said {
        let output = self.ctl(arguments).output().unwrap();
        Said {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// `dwcpctl nic …`, which must end well.
    pub fn done(&self, arguments: &[&str]) -> String {
        let said = self.nic(arguments);
        assert_eq!(
            said.code,
            Some(0),
            "{arguments:?}: {}{}",
            said.out,
            said.err
        );
        said.out
    }

    /// Begins `dwcpctl nic …`, kills the control plane as soon as `begun`, and starts another one.
    pub fn killed_during(&mut self, arguments: &[&str], begun: impl Fn() -> bool) {
        let mut ctl = Proc::spawn(self.ctl(arguments), &self.dir.file("ctl.log")).unwrap();
        // Without a pause, so as to be there in time; the other processor does the work.
        while !begun() && ctl.ended().is_none() {
            std::thread::yield_now();
        }
        self.controlplane.kill();
        ctl.wait(PATIENCE).unwrap();
        self.controlplane = start(&self.dir);
        self.wait_ready();
    }

    /// A file of this text.
    pub fn profile(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.file(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// The journal of a NIC, as far as it is written.
    pub fn journal(&self, nic: &str) -> impl Fn() -> String + use<> {
        let path = self.dir.file("state/nics").join(format!("{nic}.journal"));
        move || fs::read_to_string(&path).unwrap_or_default()
    }

    /// The NICs as `dwcpctl` lists them, by PCI address.
    pub fn list(&self) -> BTreeMap<String, Value> {
        let list: Value = serde_json::from_str(&self.done(&["list", "--json"])).unwrap();
        let nics = list["nics"].as_array().unwrap().iter();
        nics.map(|nic| (nic["pci"].as_str().unwrap().to_owned(), nic.clone()))
            .collect()
    }

    /// How far the plan is that a NIC carries; empty if it carries none.
    pub fn plan_state(&self, nic: &str) -> String {
        let state = &self.list()[nic]["plan"]["state"];
        state.as_str().unwrap_or_default().to_owned()
    }

    /// All that a profile may change: every NIC with all its settings, hugepages, interrupts.
    pub fn all(&self) -> Value {
        let mut nics = self.list();
        for nic in nics.values_mut() {
            for interface in nic["interfaces"].as_array_mut().unwrap() {
                // A link that was just switched on negotiates for a while.
                interface.as_object_mut().unwrap().remove("speed_mbps");
            }
        }
        json!({ "nics": nics, "hugepages": hugepages(), "interrupts": interrupts() })
    }
}

fn start(dir: &LabDir) -> Proc {
    let mut command = Command::new(binary("dwcp-controlplane").unwrap());
    command.arg("--config").arg(dir.file("controlplane.toml"));
    Proc::spawn(command, &dir.file("controlplane.log")).unwrap()
}

/// Hugepages of the machine.
pub fn hugepages() -> String {
    read("/proc/sys/vm/nr_hugepages")
}

/// The first line of a file, without its end.
pub fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    let text =
        fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.trim_end().to_owned()
}

/// The cores of each interrupt that serves an interface, by the name of its handler.
pub fn interrupts() -> BTreeMap<String, String> {
    let mut cores = BTreeMap::new();
    for interrupt in fs::read_dir("/proc/irq").unwrap() {
        let folder = interrupt.unwrap().path();
        for handler in fs::read_dir(&folder).into_iter().flatten() {
            let handler = handler.unwrap();
            let name = handler.file_name().into_string().unwrap();
            if name.starts_with("eth") {
                cores.insert(name, read(folder.join("smp_affinity_list")));
            }
        }
    }
    cores
}
