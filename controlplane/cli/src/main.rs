//! `dwcpctl`, the operator's command line, over the REST API; certificates alone are made in a folder.
//!
//! | module | what |
//! |---|---|
//! | [`args`] | the command line |
//! | [`exit`] | how the program ends |
//! | [`tls`] | whom `https://` trusts |
//! | [`client`] | requests, and errors that say what to type next |
//! | [`migrate`], [`follow`] | one migration to its end |
//! | [`mode`] | modes of peers |
//! | [`limit`] | how much of the line migrations may take, and where it leads |
//! | [`baseline`] | blocks kept on disk |
//! | [`nic`] | NICs and their profiles |
//! | [`rollout`] | rollouts |
//! | [`steer`] | flags, kill switch, health, lists |
//! | [`access`] | tokens, the audit log |
//! | [`pki`] | certificates |
//! | [`perf`], [`rates`] | counters, flame graphs |
//! | [`progress`], [`say`], [`watch`] | bars and lines, once or again and again |
//! | [`words`] | completions and manual pages |
//! | [`sse`], [`view`] | the API's event stream and its views |

use std::process::ExitCode;

use clap::Parser;

mod access;
mod args;
mod baseline;
mod client;
mod cluster;
mod exit;
mod follow;
mod limit;
mod migrate;
mod mode;
mod nic;
mod perf;
mod pki;
mod progress;
mod rates;
mod rollout;
mod say;
mod sse;
mod steer;
mod tls;
mod view;
mod watch;
mod words;

use args::{Cli, Command};
use client::{Api, ApiError};
use exit::Exit;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.command {
        Command::Pki { command } => {
            return match pki::pki(command, cli.json) {
                Ok(exit) => exit.into(),
                Err(error) => {
                    say::aside(format_args!("dwcpctl: {error}"));
                    error.exit().into()
                }
            };
        }
        Command::Completions { shell } => return words::completions(shell).into(),
        Command::Man { folder } => return words::man(&folder).into(),
        _ => {}
    }
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            say::aside(format_args!(
                "dwcpctl: the async runtime cannot start: {error}"
            ));
            return Exit::Failed.into();
        }
    };
    match runtime.block_on(run(cli)) {
        Ok(exit) => exit.into(),
        Err(error) => {
            say::aside(format_args!("dwcpctl: {error}"));
            error.exit().into()
        }
    }
}

async fn run(cli: Cli) -> Result<Exit, ApiError> {
    let api = Api::new(&cli.api, cli.token_file, cli.ca.as_deref())?;
    let as_json = cli.json;
    match cli.command {
        Command::Migrate(args) => migrate::migrate(&api, &args, as_json).await,
        Command::Status {
            id: Some(id),
            watch: true,
        } => migrate::watch(&api, &id, as_json).await,
        Command::Status {
            id: None,
            watch: true,
        } => watch::watch(|| steer::status(&api, None, as_json)).await,
        Command::Flags { watch: true, .. } => {
            watch::watch(|| steer::flags(&api, None, as_json)).await
        }
        Command::Mode { watch: true, .. } => watch::watch(|| mode::mode(&api, None, as_json)).await,
        Command::Cluster { watch: true, .. } => {
            watch::watch(|| cluster::cluster(&api, None, as_json)).await
        }
        Command::Health {
            detailed,
            watch: true,
        } => watch::watch(|| steer::health(&api, detailed, as_json)).await,
        Command::Status { id, .. } => steer::status(&api, id.as_deref(), as_json).await,
        Command::Cancel { id } => migrate::cancel(&api, &id, as_json).await,
        Command::Limit { id, to, .. } => limit::limit(&api, id.as_deref(), to, as_json).await,
        Command::Redirect { id, to } => limit::redirect(&api, &id, to, as_json).await,
        Command::Recover { id, detach } => migrate::recover(&api, &id, detach, as_json).await,
        Command::Flags { command, .. } => steer::flags(&api, command, as_json).await,
        Command::Mode { command, .. } => mode::mode(&api, command, as_json).await,
        Command::Cluster { command, .. } => cluster::cluster(&api, command, as_json).await,
        Command::Rollout { command } => rollout::rollout(&api, command, as_json).await,
        Command::Rollback { off } => steer::rollback(&api, off, as_json).await,
        Command::Nic { command } => nic::nic(&api, command, as_json).await,
        Command::Baseline { command } => baseline::baseline(&api, command, as_json).await,
        Command::Perf { command } => perf::perf(&api, command, as_json).await,
        Command::Health { detailed, .. } => steer::health(&api, detailed, as_json).await,
        Command::Tokens { command } => access::tokens(&api, command, as_json).await,
        Command::Audit { limit } => access::audit(&api, limit, as_json).await,
        // Done before a control plane was asked for.
        Command::Pki { .. } | Command::Completions { .. } | Command::Man { .. } => Ok(Exit::Done),
    }
}
