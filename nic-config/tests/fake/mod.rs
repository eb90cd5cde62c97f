//! A machine made of files: a sysfs and a procfs tree with NICs in it, and a kernel that reacts to
//! what is written there as the real one does. It is a double because no real driver can be made to
//! refuse, to do less than it was told, or to die at a chosen step.
//!
//! All of its state lies in the tree, so that a photograph of the tree is one of the machine.
#![allow(dead_code, reason = "each test file uses its own part")]

mod build;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

pub use build::NicSpec;
use dwcp_nic_config::kernel::{
    Address, ChannelCounts, Channels, Kernel, KernelError, Link, LinkChange, Offload, RingSizes,
    Rings, Route,
};

pub struct Machine {
    folder: tempfile::TempDir,
    sys: PathBuf,
    proc: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    addresses: Vec<Address>,
    routes: Vec<Route>,
    /// Orders given so far that change something.
    orders: usize,
    /// The process dies at this order.
    dies_at: Option<(usize, Moment)>,
    /// The order whose text holds this is refused.
    refused: Option<String>,
    /// Hugepages that there is memory for.
    pages_max: Option<u32>,
    /// Sizes of rings are rounded down to multiples of this.
    ring_step: Option<u32>,
}

/// When a process dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    Before,
    After,
}

/// What a death of the process unwinds with.
pub struct Died;

impl Machine {
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub fn address(&self, interface: &str, address: &str, prefix_len: u8) {
        let address: std::net::IpAddr = address.parse().unwrap();
        let link_local =
            matches!(address, std::net::IpAddr::V6(six) if six.is_unicast_link_local());
        self.state().addresses.push(Address {
            interface: interface.to_owned(),
            address,
            prefix_len,
            global: !link_local && !address.is_loopback(),
        });
    }

    pub fn route(&self, interfaces: &[&str], default: bool) {
        self.state().routes.push(Route {
            interfaces: interfaces.iter().map(|name| (*name).to_owned()).collect(),
            default,
        });
    }

    pub fn no_routes(&self) {
        self.state().routes.clear();
    }

    pub fn orders(&self) -> usize {
        self.state().orders
    }

    /// Lets the process die at an order, counted from now.
    pub fn dies_at(&self, order: usize, moment: Moment) {
        let mut state = self.state();
        state.orders = 0;
        state.dies_at = Some((order, moment));
    }

    pub fn lives(&self) {
        self.state().dies_at = None;
    }

    pub fn refuses(&self, order: Option<&str>) {
        self.state().refused = order.map(str::to_owned);
    }

    pub fn has_pages_for(&self, pages: u32) {
        self.state().pages_max = Some(pages);
    }

    pub fn rounds_rings(&self, step: u32) {
        self.state().ring_step = Some(step);
    }

    /// Every file and link of the machine with what it holds, but the PCI bus's own files, which say
    /// nothing about its state.
    pub fn photograph(&self) -> BTreeMap<PathBuf, String> {
        let mut found = BTreeMap::new();
        let mut next = vec![self.sys.clone(), self.proc.clone()];
        while let Some(folder) = next.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let kind = fs::symlink_metadata(&path).unwrap().file_type();
                if kind.is_symlink() {
                    let target = fs::read_link(&path).unwrap().display().to_string();
                    found.insert(path, target);
                } else if kind.is_dir() {
                    next.push(path);
                } else if !path.ends_with("drivers_probe") && !path.ends_with("unbind") {
                    let text = fs::read_to_string(&path).unwrap();
                    found.insert(path, text.trim().to_owned());
                }
            }
        }
        found
    }

    /// The machine is as it was on a photograph.
    pub fn is_as(&self, before: &BTreeMap<PathBuf, String>, when: &str) {
        let after = self.photograph();
        let paths = before.keys().chain(after.keys());
        for path in paths {
            assert_eq!(
                before.get(path),
                after.get(path),
                "{when}: {}",
                path.display()
            );
        }
    }

    pub fn read(&self, path: &str) -> String {
        let text = fs::read_to_string(self.folder.path().join(path)).unwrap();
        text.trim().to_owned()
    }

    pub fn set(&self, path: &str, text: &str) {
        let path = self.folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{text}\n")).unwrap();
    }

    /// An order that changes something.
    fn order(&self, text: &str, work: impl FnOnce() -> io::Result<()>) -> Result<(), KernelError> {
        let (number, dies, refused) = {
            let mut state = self.state();
            state.orders += 1;
            let refused = state
                .refused
                .as_ref()
                .is_some_and(|word| text.contains(word.as_str()));
            (state.orders, state.dies_at, refused)
        };
        if dies == Some((number, Moment::Before)) {
            std::panic::resume_unwind(Box::new(Died));
        }
        let result = if refused {
            Err(io::Error::from_raw_os_error(22))
        } else {
            work()
        };
        if dies == Some((number, Moment::After)) {
            std::panic::resume_unwind(Box::new(Died));
        }
        result.map_err(|source| KernelError::Netlink {
            what: text.to_owned(),
            source,
            said: Some("the double was told to refuse".to_owned()),
        })
    }

    fn device(&self, pci: &str) -> PathBuf {
        self.sys
            .join("bus/pci/devices")
            .join(pci)
            .canonicalize()
            .unwrap()
    }

    fn net(&self, interface: &str) -> PathBuf {
        self.sys.join("class/net").join(interface)
    }

    /// A value that the double keeps beside an interface.
    fn hidden(&self, interface: &str, name: &str) -> Option<String> {
        let text = fs::read_to_string(self.net(interface).join("kernel").join(name)).ok()?;
        Some(text.trim().to_owned())
    }

    fn hide(&self, interface: &str, name: &str, text: &str) -> io::Result<()> {
        fs::write(
            self.net(interface).join("kernel").join(name),
            format!("{text}\n"),
        )
    }

    fn numbers(&self, interface: &str, name: &str) -> Option<Vec<u32>> {
        let text = self.hidden(interface, name)?;
        Some(
            text.split_whitespace()
                .map(|number| number.parse().unwrap())
                .collect(),
        )
    }

    fn written(&self, path: &Path, value: &str) -> io::Result<()> {
        let name = path.file_name().unwrap().to_str().unwrap();
        match name {
            "unbind" => {
                let device = self.device(value);
                self.unbind(&device);
                Ok(())
            }
            "drivers_probe" => {
                let device = self.device(value);
                self.probe(&device);
                Ok(())
            }
            "sriov_numvfs" => self.functions(path, value.parse().unwrap()),
            "nr_hugepages" => {
                let most = self.state().pages_max.unwrap_or(u32::MAX);
                let pages: u32 = value.parse().unwrap();
                fs::write(path, format!("{}\n", pages.min(most)))
            }
            "driver_override" => {
                let text = if value.is_empty() { "(null)" } else { value };
                fs::write(path, format!("{text}\n"))
            }
            _ => {
                fs::metadata(path)?;
                fs::write(path, format!("{value}\n"))
            }
        }
    }

    /// A NIC that loses its kernel driver loses its interfaces and all that was set on them.
    fn unbind(&self, device: &Path) {
        let _ = fs::remove_file(device.join("driver"));
        if let Ok(interfaces) = fs::read_dir(device.join("net")) {
            for interface in interfaces {
                let name = interface.unwrap().file_name();
                fs::remove_file(self.sys.join("class/net").join(&name)).unwrap();
            }
            fs::remove_dir_all(device.join("net")).unwrap();
        }
    }

    /// Binds the driver that the override names, else the one that is made for the device, which shows
    /// its interfaces in their first state and under the kernel's own name.
    fn probe(&self, device: &Path) {
        if device.join("driver").exists() {
            return;
        }
        let over = fs::read_to_string(device.join("driver_override")).unwrap();
        let native = fs::read_to_string(device.join("native/driver")).unwrap();
        let driver = match over.trim() {
            "" | "(null)" => native.trim(),
            other => other,
        };
        let folder = self.sys.join("bus/pci/drivers").join(driver);
        if !folder.exists() {
            return;
        }
        symlink(folder, device.join("driver")).unwrap();
        if driver == native.trim() {
            let fresh = device.join("native/net");
            build::copy(&fresh, &device.join("net"));
            for interface in fs::read_dir(device.join("net")).unwrap() {
                let interface = interface.unwrap();
                let link = self.sys.join("class/net").join(interface.file_name());
                symlink(interface.path(), link).unwrap();
            }
        }
    }

    fn functions(&self, path: &Path, count: usize) -> io::Result<()> {
        let device = &path.parent().unwrap().canonicalize()?;
        let now: usize = fs::read_to_string(path)?.trim().parse().unwrap();
        if now > 0 && count > 0 {
            return Err(io::Error::from_raw_os_error(16));
        }
        for index in 0..now.max(count) {
            let (link, pci) = (format!("virtfn{index}"), build::function_of(device, index));
            let (folder, entry) = (
                device.parent().unwrap().join(&pci),
                self.sys.join("bus/pci/devices").join(&pci),
            );
            if index < count {
                fs::create_dir_all(&folder)?;
                fs::write(folder.join("class"), "0x020000\n")?;
                symlink(&folder, &entry)?;
                symlink(&folder, device.join(link))?;
            } else {
                fs::remove_file(device.join(link))?;
                fs::remove_file(entry)?;
                fs::remove_dir_all(folder)?;
            }
        }
        fs::write(path, format!("{count}\n"))
    }
}

impl Kernel for Machine {
    fn sys(&self) -> &Path {
        &self.sys
    }

    fn proc(&self) -> &Path {
        &self.proc
    }

    fn write(&self, path: &Path, value: &str) -> Result<(), KernelError> {
        let text = format!("write {value:?} to {}", path.display());
        self.order(&text, || self.written(path, value))
    }

    fn links(&self) -> Result<Vec<Link>, KernelError> {
        let mut links = Vec::new();
        for (index, entry) in fs::read_dir(self.sys.join("class/net"))
            .unwrap()
            .enumerate()
        {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let number = |file: &str| {
                self.hidden(&name, file)
                    .map(|text| text.parse::<u32>().unwrap())
            };
            let range = self.numbers(&name, "mtu_range");
            links.push(Link {
                index: u32::try_from(index).unwrap(),
                mtu: number("mtu").unwrap_or(1500),
                mtu_range: range.map(|range| (range[0], range[1])),
                up: number("up") == Some(1),
                mac: self.hidden(&name, "mac").unwrap_or_default(),
                name,
            });
        }
        Ok(links)
    }

    fn addresses(&self) -> Result<Vec<Address>, KernelError> {
        Ok(self.state().addresses.clone())
    }

    fn routes(&self) -> Result<Vec<Route>, KernelError> {
        Ok(self.state().routes.clone())
    }

    fn change_link(&self, interface: &str, change: &LinkChange) -> Result<(), KernelError> {
        self.order(
            &format!("change {interface}: {change:?}"),
            || match change {
                LinkChange::Mtu(mtu) => self.hide(interface, "mtu", &mtu.to_string()),
                LinkChange::Up(up) => self.hide(interface, "up", &u8::from(*up).to_string()),
                LinkChange::Name(name) => {
                    if self.hidden(interface, "up").as_deref() == Some("1") {
                        return Err(io::Error::from_raw_os_error(16));
                    }
                    let old = self.net(interface).canonicalize()?;
                    let new = old.with_file_name(name);
                    fs::rename(old, &new)?;
                    fs::remove_file(self.net(interface))?;
                    symlink(new, self.net(name))
                }
            },
        )
    }

    fn rings(&self, interface: &str) -> Result<Option<Rings>, KernelError> {
        let sizes = |numbers: Vec<u32>| RingSizes {
            rx: numbers[0],
            tx: numbers[1],
        };
        let now = self.numbers(interface, "rings").map(sizes);
        let max = self.numbers(interface, "rings_max").map(sizes);
        Ok(now.zip(max).map(|(now, max)| Rings { now, max }))
    }

    fn set_rings(&self, interface: &str, sizes: RingSizes) -> Result<(), KernelError> {
        let step = self.state().ring_step.unwrap_or(1);
        self.order(&format!("set rings of {interface} to {sizes:?}"), || {
            let (rx, tx) = (sizes.rx / step * step, sizes.tx / step * step);
            self.hide(interface, "rings", &format!("{rx} {tx}"))
        })
    }

    fn channels(&self, interface: &str) -> Result<Option<Channels>, KernelError> {
        let counts = |numbers: Vec<u32>| ChannelCounts {
            rx: numbers[0],
            tx: numbers[1],
            combined: numbers[2],
        };
        let now = self.numbers(interface, "channels").map(counts);
        let max = self.numbers(interface, "channels_max").map(counts);
        Ok(now.zip(max).map(|(now, max)| Channels { now, max }))
    }

    fn set_channels(&self, interface: &str, counts: ChannelCounts) -> Result<(), KernelError> {
        let ChannelCounts { rx, tx, combined } = counts;
        self.order(
            &format!("set channels of {interface} to {counts:?}"),
            || self.hide(interface, "channels", &format!("{rx} {tx} {combined}")),
        )
    }

    fn offloads(&self, interface: &str) -> Result<BTreeMap<String, Offload>, KernelError> {
        let text = self.hidden(interface, "offloads").unwrap_or_default();
        let offload = |line: &str| {
            let words: Vec<_> = line.split(' ').collect();
            let offload = Offload {
                on: words[1] == "on",
                fixed: words.len() > 2,
            };
            (words[0].to_owned(), offload)
        };
        Ok(text.lines().map(offload).collect())
    }

    fn set_offloads(
        &self,
        interface: &str,
        wanted: &BTreeMap<String, bool>,
    ) -> Result<(), KernelError> {
        let mut all = self.offloads(interface)?;
        self.order(
            &format!("set offloads of {interface} to {wanted:?}"),
            || {
                for (name, on) in wanted {
                    all.get_mut(name).unwrap().on = *on;
                }
                let lines: Vec<_> = all
                    .iter()
                    .map(|(name, offload)| {
                        let (on, fixed) = (offload.on, offload.fixed);
                        format!(
                            "{name} {}{}",
                            if on { "on" } else { "off" },
                            if fixed { " fixed" } else { "" }
                        )
                    })
                    .collect();
                self.hide(interface, "offloads", &lines.join("\n"))
            },
        )
    }
}
