//! The data plane's process: reads its configuration, starts the engine, waits for a signal.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use dwcp_dataplane::config::Config;
use dwcp_dataplane::engine::start::Engine;
use dwcp_dataplane::tls::credentials::Credentials;

/// Moves running virtual machines between hypervisors: the part that carries the bytes.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// TOML configuration.
    #[arg(
        long,
        env = "DWCP_DATAPLANE_CONFIG",
        default_value = "/etc/dwcp/dataplane.toml"
    )]
    config: PathBuf,
    /// Check the configuration, the key and the certificates, and end.
    #[arg(long)]
    check: bool,
}

static STOP: AtomicBool = AtomicBool::new(false);

/// The certificate files are to be read again.
static READ_FILES: AtomicBool = AtomicBool::new(false);

extern "C" fn on_signal(signal: libc::c_int) {
    let word = if signal == libc::SIGHUP {
        &READ_FILES
    } else {
        &STOP
    };
    word.store(true, Ordering::Release);
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("DWCP_LOG")
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info")),
        )
        .with_writer(std::io::stderr)
        .init();
    let config = Config::load(&args.config)?;
    if args.check {
        if config.uses_psk() {
            config.read_psk()?;
        }
        if let Some(tls) = &config.tls {
            Credentials::load(tls, &config.node)?;
        }
        println!("{}: good", args.config.display());
        return Ok(());
    }
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        let handler = on_signal as extern "C" fn(libc::c_int);
        // SAFETY: needed because std has no signals. The handler only stores to an atomic, which is
        // allowed in a signal handler, and lives as long as the process.
        if unsafe { libc::signal(signal, handler as libc::sighandler_t) } == libc::SIG_ERR {
            return Err(std::io::Error::last_os_error()).context("signal handler");
        }
    }
    let engine = Engine::start(config)?;
    tracing::info!(listen = %engine.listen(), "ready");
    while !STOP.load(Ordering::Acquire) {
        std::thread::sleep(Duration::from_millis(50));
        if READ_FILES.swap(false, Ordering::AcqRel) {
            engine.read_files();
        }
        if engine.is_broken() {
            anyhow::bail!("a worker ended; see the log above, and start the data plane again");
        }
    }
    tracing::info!("stopping: running sessions fail closed, their guests go on at the source");
    engine.stop();
    Ok(())
}
