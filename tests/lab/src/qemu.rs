//! Which QEMU runs a guest, and with which accelerator.

use crate::dir::cache_dir;
use crate::image::Image;
use crate::procs::{Proc, ProcError, run};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

/// Both QEMU versions know this machine, so guests move between them either way.
const MACHINE: &str = "pc-q35-7.2";
/// How long the probe guest may take under KVM; it takes two seconds where KVM works.
const PROBE_LIMIT: Duration = Duration::from_secs(8);

/// A QEMU release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ValueEnum)]
pub enum QemuVersion {
    /// 10.0, the system's own after `setup.sh`.
    #[value(name = "10.0")]
    V10,
    /// 7.2, unpacked into the lab's cache. Under TCG it is fit as a destination only: as the source
    /// of a live migration, with nobody in between, it leaves out writes to the guest's kernel
    /// stacks (8 of 12 guests crashed on arrival; 10.0 as the source: none of 20). Under TCG move a
    /// guest away from it paused.
    #[value(name = "7.2")]
    V7_2,
}

/// What executes the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Accelerator {
    /// The processor.
    Kvm,
    /// QEMU's translator.
    Tcg,
}

impl QemuVersion {
    /// A command for this release with its data directories.
    pub(crate) fn arguments(self) -> (PathBuf, Vec<String>) {
        match self {
            Self::V10 => ("qemu-system-x86_64".into(), vec![]),
            Self::V7_2 => {
                let root = cache_dir().join("qemu-7.2/usr");
                let data = |name: &str| root.join("share").join(name).display().to_string();
                let flags = ["-L".into(), data("qemu"), "-L".into(), data("seabios")];
                (root.join("bin/qemu-system-x86_64"), flags.to_vec())
            }
        }
    }

    /// What the program says of itself; part of the key of saved guests.
    pub fn describe(self) -> Result<String, ProcError> {
        let (program, flags) = self.arguments();
        let mut command = Command::new(program);
        command.args(flags).arg("--version");
        Ok(run(command)?.lines().next().unwrap_or_default().to_owned())
    }
}

impl Accelerator {
    /// KVM where a guest gets to user space with it, else TCG. Probed once per process and said;
    /// `DWCP_LAB_ACCEL=tcg` or `kvm` skips the probe.
    #[must_use]
    pub fn probed(image: &Image) -> Self {
        static FOUND: OnceLock<Accelerator> = OnceLock::new();
        *FOUND.get_or_init(|| {
            let forced = std::env::var("DWCP_LAB_ACCEL").unwrap_or_default();
            let found = match forced.as_str() {
                "tcg" => Self::Tcg,
                "kvm" => Self::Kvm,
                _ => remembered(image),
            };
            eprintln!("lab: guests run under {found:?}");
            found
        })
    }

    pub(crate) fn flags(self) -> [&'static str; 4] {
        match self {
            // "-cpu host" aborts in some nested machines; this model works where KVM does.
            Self::Kvm => ["-accel", "kvm", "-cpu", "qemu64"],
            Self::Tcg => ["-accel", "tcg,thread=multi,tb-size=64", "-cpu", "qemu64"],
        }
    }
}

/// The machine's answer does not change until it is started anew, hence is kept in `/run`.
fn remembered(image: &Image) -> Accelerator {
    let note = std::path::Path::new("/run/dwcp-lab-accelerator");
    match fs::read_to_string(note).unwrap_or_default().trim() {
        "Kvm" => return Accelerator::Kvm,
        "Tcg" => return Accelerator::Tcg,
        _ => {}
    }
    let found = if std::path::Path::new("/dev/kvm").exists() && kvm_boots(image) {
        Accelerator::Kvm
    } else {
        Accelerator::Tcg
    };
    let _ = fs::write(note, format!("{found:?}"));
    found
}

fn kvm_boots(image: &Image) -> bool {
    let Ok(dir) = tempfile::tempdir() else {
        return false;
    };
    let serial = dir.path().join("serial");
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args(Accelerator::Kvm.flags())
        .args(machine_flags())
        .args([
            "-m",
            "128",
            "-chardev",
            "null,id=console",
            "-serial",
            "chardev:console",
        ])
        .arg("-serial")
        .arg(format!("file:{}", serial.display()))
        .args(kernel_flags(image, 16, 1));
    let Ok(mut process) = Proc::spawn(command, &dir.path().join("log")) else {
        return false;
    };
    crate::watchdog::poll_until(PROBE_LIMIT, || {
        let ready = fs::read_to_string(&serial).is_ok_and(|text| text.contains("READY"));
        (ready || process.ended().is_some()).then_some(ready)
    })
    .unwrap_or(false)
}

pub(crate) fn machine_flags() -> [&'static str; 7] {
    [
        "-machine",
        MACHINE,
        "-nodefaults",
        "-display",
        "none",
        "-no-reboot",
        "-no-user-config",
    ]
}

pub(crate) fn kernel_flags(image: &Image, load_mb: u32, seed: u64) -> [String; 6] {
    [
        "-kernel".into(),
        image.kernel.display().to_string(),
        "-initrd".into(),
        image.initramfs.display().to_string(),
        "-append".into(),
        kernel_words(load_mb, seed),
    ]
}

/// The kernel's command line, and in it what the load program is to do.
pub(crate) fn kernel_words(load_mb: u32, seed: u64) -> String {
    format!(
        "console=ttyS0 quiet panic=-1 tsc=reliable no_timer_check mitigations=off \
         dwcp.load_mb={load_mb} dwcp.seed={seed}"
    )
}
