//! The data plane's process: reads its configuration, starts the engine, waits for a signal.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Parser, Subcommand};
use dwcp_dataplane::config::{Config, FILE_DEFAULT};
use dwcp_dataplane::engine::start::Engine;
use dwcp_dataplane::tls::credentials::Credentials;
use dwcp_service::notify::Notifier;
use dwcp_service::show::show;

/// Moves running virtual machines between hypervisors: the part that carries the bytes.
///
/// Every key of the file is also a variable DWCP_DATAPLANE_KEY (DWCP_DATAPLANE_TLS__CA for tls.ca).
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// TOML configuration; it may be missing at its default place.
    #[arg(
        long,
        global = true,
        env = "DWCP_DATAPLANE_CONFIG",
        default_value = FILE_DEFAULT
    )]
    config: PathBuf,
    /// A setting over the file and the environment, such as --set lanes_max=32; may be repeated.
    #[arg(long, global = true, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// What to do instead of carrying.
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Looks at the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Checks the configuration, the key and the certificates.
    Check,
    /// Prints the values in force and where each came from.
    Show {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
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
    let layers = Config::layers(&args.config, std::env::vars(), &args.set)?;
    let config = Config::of(&layers, &args.config)?;
    match args.command {
        Some(Command::Config(ConfigCommand::Check)) => {
            if config.uses_psk() {
                config.read_psk()?;
            }
            if let Some(tls) = &config.tls {
                Credentials::load(tls, &config.node)?;
            }
            println!("{}: good", args.config.display());
            return Ok(());
        }
        Some(Command::Config(ConfigCommand::Show { json })) => {
            let shown = show(&config, |key| layers.origin(key))?;
            if json {
                println!("{}", shown.json()?);
            } else {
                print!("{shown}");
            }
            return Ok(());
        }
        None => {}
    }
    // Peers, hypervisors and the kill switch wait for threads that share their cores with guests.
    if let Err(error) = dwcp_service::slice::shorten() {
        tracing::debug!(%error, "the turns of the threads keep their length");
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
    let manager = Notifier::from_env();
    manager.ready(&format!("takes lanes on {}", engine.listen()));
    let mut told = Instant::now();
    while !STOP.load(Ordering::Acquire) {
        std::thread::sleep(Duration::from_millis(50));
        if READ_FILES.swap(false, Ordering::AcqRel) {
            engine.read_files();
        }
        // What shows life is that every worker turns: this loop here would go on without them.
        if let Some(patience) = manager.watchdog()
            && told.elapsed() >= patience / 4
            && engine.is_turning(patience / 2)
        {
            manager.alive();
            told = Instant::now();
        }
        if engine.is_broken() {
            anyhow::bail!("a worker ended; see the log above, and start the data plane again");
        }
    }
    tracing::info!("stopping: running sessions fail closed, their guests go on at the source");
    manager.stopping();
    engine.stop();
    Ok(())
}
