//! The control plane's process: reads the settings, opens the API's socket, runs until SIGTERM or
//! SIGINT. Stopping it stops no migration.

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::Context;
use clap::{ArgMatches, CommandFactory, FromArgMatches};
use dwcp_controlplane::config::{Args, Command, Config, ConfigCommand};
use dwcp_controlplane::node;
use dwcp_controlplane::tls;
use dwcp_controlplane::token::Token;
use dwcp_service::notify::Notifier;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let matches = Args::command().get_matches();
    let started = Args::from_arg_matches(&matches).map_err(|error| error.exit());
    match started.and_then(|args| start(&args, &matches)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dwcp-controlplane: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(args: &Args, matches: &ArgMatches) -> anyhow::Result<()> {
    let config = Config::load(args)?;
    match args.command {
        Some(Command::Config(ConfigCommand::Check)) => {
            Token::read(&config.token_file)?;
            Token::read(&config.peer_token_file)?;
            config.tls()?;
            tls::client(config.tls_ca.as_deref())?;
            println!("good");
            return Ok(());
        }
        Some(Command::Config(ConfigCommand::Show { json })) => {
            let shown = config.shown(args, matches)?;
            if json {
                println!("{}", shown.json()?);
            } else {
                print!("{shown}");
            }
            return Ok(());
        }
        None => {}
    }
    let filter = EnvFilter::try_from_env("DWCP_LOG")
        .unwrap_or_else(|_| EnvFilter::new("info,openraft=warn"));
    // Colours are for terminals: a log file or a journal gets plain text.
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    tracing_subscriber::fmt()
        .with_ansi(colours)
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    // Requests, the kill switch among them, come in on this thread.
    if let Err(error) = dwcp_service::slice::shorten() {
        tracing::debug!(%error, "this thread's turns keep their length");
    }
    let mut runtime = if config.threads == 1 {
        tokio::runtime::Builder::new_current_thread()
    } else {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(config.threads);
        builder
    };
    let runtime = runtime
        .enable_all()
        // What blocks is an fsync now and then.
        .max_blocking_threads(8)
        .build()
        .context("the async runtime cannot start")?;
    runtime.block_on(run(&config))
}

async fn run(config: &Config) -> anyhow::Result<()> {
    let listener = TcpListener::bind(config.listen).await.with_context(|| {
        format!(
            "cannot listen on {}: choose another address with --listen",
            config.listen
        )
    })?;
    let address = listener.local_addr().context("the socket has no address")?;
    if !address.ip().is_loopback() && config.tls_cert.is_none() {
        tracing::warn!(
            %address,
            "the token crosses the network in clear: keep this address on a trusted management network, or set tls_cert and tls_key"
        );
    }
    let (stopper, stop) = watch::channel(false);
    let mut terminate = signal(SignalKind::terminate()).context("no SIGTERM handler")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("no SIGINT handler")?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping; running migrations go on");
        Notifier::from_env().stopping();
        stopper.send_replace(true);
        // A second signal does not wait for requests in progress.
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        std::process::exit(1);
    });
    node::run(config, listener, stop).await?;
    Ok(())
}
