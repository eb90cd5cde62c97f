//! The lab from a shell: build the guest's image, migrate directly and print the figures, run a
//! command in a virtual machine.

use anyhow::Result;
use clap::{Parser, Subcommand};
use dwcp_lab::demo::DemoConfig;
use dwcp_lab::direct::{DirectConfig, run};
use dwcp_lab::guest::{Arrival, Guest, GuestConfig};
use dwcp_lab::image::Image;
use dwcp_lab::link::{LinkConfig, Shape};
use dwcp_lab::qemu::QemuVersion;
use dwcp_lab::vm::{Shape as VmShape, Vm, VmConfig};
use serde_json::json;
use std::process::ExitCode;
use std::time::{Duration, Instant};

#[derive(Parser)]
#[command(about = "Hosts, links and guests for tests of live migration")]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build what guests boot, and one saved guest of the default size.
    Image,
    /// Move a guest through two data planes by dwcpctl, then by QEMU alone, and compare.
    Demo(Demo),
    /// Migrate a guest by QEMU alone over a shaped link and print what was measured.
    Direct(Direct),
    /// Run a command in a virtual machine, here and on these files, and end with its status.
    Vm(InVm),
}

#[derive(clap::Args)]
struct InVm {
    /// Its devices.
    #[arg(value_enum)]
    shape: VmShape,
    /// For bash.
    command: String,
    /// Give up after this many seconds.
    #[arg(long, default_value_t = 240)]
    limit_s: u64,
}

#[derive(clap::Args)]
struct Direct {
    /// The line: RATE_MBIT DELAY_MS LOSS_PERCENT [QUEUE_MS], one way.
    #[arg(long, default_value = "200 40 0")]
    link: Shape,
    /// Memory of the guest in MiB.
    #[arg(long, default_value_t = 512)]
    guest_mb: u32,
    /// Pages the guest changes per second.
    #[arg(long, default_value_t = 500)]
    dirty_pages: u32,
    /// Multifd channels instead of one connection.
    #[arg(long)]
    multifd: Option<u8>,
    /// QEMU's downtime limit in milliseconds.
    #[arg(long, default_value_t = 300)]
    downtime_ms: u32,
    /// QEMU at the source.
    #[arg(long, value_enum, default_value = "10.0")]
    source_qemu: QemuVersion,
    /// QEMU at the destination.
    #[arg(long, value_enum, default_value = "10.0")]
    destination_qemu: QemuVersion,
    /// Keep the destination paused and compare both memories; the gap then means nothing.
    #[arg(long)]
    compare: bool,
    /// Give up after this many seconds.
    #[arg(long, default_value_t = 600)]
    limit_s: u64,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct Demo {
    /// The line: RATE_MBIT DELAY_MS LOSS_PERCENT [QUEUE_MS], one way.
    #[arg(long, default_value = "200 40 0")]
    link: Shape,
    /// Memory of the guest in MiB.
    #[arg(long, default_value_t = 512)]
    guest_mb: u32,
    /// Pages the guest changes per second.
    #[arg(long, default_value_t = 500)]
    dirty_pages: u32,
    /// Multifd channels of the hypervisor; 0: the single stream.
    #[arg(long, default_value_t = 0)]
    multifd: u32,
    /// QEMU's downtime limit in milliseconds.
    #[arg(long, default_value_t = 300)]
    downtime_ms: u32,
    /// Do not run QEMU's own migration beside it.
    #[arg(long)]
    no_compare: bool,
    /// Throw the kill switch once a third of the guest is across.
    #[arg(long)]
    rollback_midway: bool,
    /// Write the figures to this file as JSON.
    #[arg(long)]
    json: Option<std::path::PathBuf>,
}

fn demo(options: &Demo) -> Result<()> {
    let report = dwcp_lab::demo::run(
        &DemoConfig {
            shape: options.link,
            guest_mb: options.guest_mb,
            dirty_pages_per_s: options.dirty_pages,
            multifd: options.multifd,
            rollback_midway: options.rollback_midway,
            compare: !options.no_compare,
            downtime_limit_ms: options.downtime_ms,
        },
        &|step| eprintln!("== {step}"),
    )?;
    println!("{}", dwcp_lab::demo::table(&report));
    if let Some(path) = &options.json {
        std::fs::write(path, serde_json::to_string_pretty(&report)?)?;
    }
    anyhow::ensure!(
        report.status == "completed" && report.identical && report.guest_memory_ok,
        "the guest did not arrive as it left"
    );
    Ok(())
}

fn main() -> Result<ExitCode> {
    match Arguments::parse().command {
        Task::Demo(options) => demo(&options)?,
        Task::Image => image()?,
        Task::Direct(direct) => migrate(&direct)?,
        Task::Vm(task) => return in_vm(&task),
    }
    Ok(ExitCode::SUCCESS)
}

fn in_vm(task: &InVm) -> Result<ExitCode> {
    let config = VmConfig {
        limit: Duration::from_secs(task.limit_s),
        ..VmConfig::new(task.shape)
    };
    let folder = std::env::current_dir()?;
    let outcome = Vm::start(&config, &folder, &task.command)?.wait(|line| println!("{line}"))?;
    Ok(u8::try_from(outcome.status).map_or(ExitCode::FAILURE, ExitCode::from))
}

fn image() -> Result<()> {
    let image = Image::ensure()?;
    println!(
        "kernel {}\ninitramfs {}",
        image.kernel.display(),
        image.initramfs.display()
    );
    let start = Instant::now();
    let guest = Guest::saved(None, GuestConfig::default())?;
    println!(
        "a guest of {} MiB ticks after {:?}",
        guest.config().memory_mb,
        start.elapsed()
    );
    Ok(())
}

fn migrate(direct: &Direct) -> Result<()> {
    let (figures, link_cpu_ms) = run(&DirectConfig {
        guest: GuestConfig {
            qemu: direct.source_qemu,
            ..GuestConfig::sized(direct.guest_mb)
        },
        destination: direct.destination_qemu,
        link: LinkConfig::symmetric(direct.link),
        dirty_pages_per_s: direct.dirty_pages,
        multifd: direct.multifd,
        downtime_limit_ms: direct.downtime_ms,
        arrival: if direct.compare {
            Arrival::Pause
        } else {
            Arrival::Run
        },
        limit: Duration::from_secs(direct.limit_s),
    })?;
    if direct.json {
        let mut output = serde_json::to_value(&figures)?;
        output["link_cpu_ms"] = json!(link_cpu_ms);
        println!("{output:#}");
    } else {
        println!(
            "{}: {} ms in all, guest silent for {:.0} ms, {} MB on the line, memory {}",
            figures.status,
            figures.total_ms,
            figures.guest_gap_ms,
            figures.wire_bytes / 1_000_000,
            if figures.guest_memory_ok {
                "right"
            } else {
                "WRONG"
            }
        );
    }
    Ok(())
}
