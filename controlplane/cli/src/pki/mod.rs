//! `dwcpctl pki …`: a small authority for those who have none. It works on a folder alone, without any
//! control plane.
//!
//! In: a folder, names of nodes. Out: certificates and keys, a list of revocations, and for people what to
//! copy where. Promises: nothing is overwritten; keys are readable by their owner alone; an old certificate
//! stays good until it is revoked or ends, so that a new one can be brought to its node without a cut.
//!
//! | module | what |
//! |---|---|
//! | [`authority`] | the folder and what was issued |
//! | [`certificate`] | what a certificate says |

mod authority;
mod certificate;

use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde_json::{Value, json};

use crate::exit::Exit;
use crate::say;
pub use authority::PkiError;
use authority::{Authority, Issued};

/// Where the files lie on a node, as the printed advice has it.
const ON_THE_NODE: &str = "/etc/dwcp/tls";

/// `dwcpctl pki`
#[derive(Subcommand, Debug)]
pub enum Pki {
    /// Make an authority in a new folder; keep it where no node can read it
    Init {
        /// The folder
        dir: PathBuf,
        /// Its name [default: one with random digits]
        #[arg(long)]
        name: Option<String>,
        /// How long its certificate is good
        #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=50))]
        years: u32,
    },
    /// Issue a node's first certificate
    Issue {
        /// The authority's folder
        dir: PathBuf,
        /// The node, as `node` in its data plane's configuration says
        node: String,
        /// How long it is good
        #[arg(long, value_name = "N", default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=3650))]
        days: u32,
    },
    /// Issue a new certificate and key to a node that has one; the old one stays good
    Rotate {
        /// The authority's folder
        dir: PathBuf,
        /// The node
        node: String,
        /// How long it is good
        #[arg(long, value_name = "N", default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=3650))]
        days: u32,
    },
    /// Put a node's certificates on the list of those that are no longer good
    Revoke {
        /// The authority's folder
        dir: PathBuf,
        /// The node
        node: String,
        /// All but its newest
        #[arg(long, conflicts_with = "serial")]
        old: bool,
        /// Only the one with this serial number
        #[arg(long, value_name = "HEX")]
        serial: Option<String>,
    },
}

/// Does it.
pub fn pki(command: Pki, as_json: bool) -> Result<Exit, PkiError> {
    match command {
        Pki::Init { dir, name, years } => {
            let authority = Authority::create(&dir, name, years)?;
            let value = json!({
                "dir": dir,
                "name": authority.name(),
                "not_after": authority.not_after(),
                "key": dir.join(authority::CA_KEY),
                "copy": [copy(&dir, authority::CA, "ca.pem", "0644"), copy(&dir, authority::CRL, "crl.pem", "0644")],
            });
            show(&value, as_json, || {
                say::result(format_args!(
                    "authority \"{}\", good until {}",
                    authority.name(),
                    authority.not_after()
                ));
                say::result(format_args!(
                    "  {} signs certificates: whoever has it can be any node",
                    dir.join(authority::CA_KEY).display()
                ));
                say::result(format_args!(
                    "next: dwcpctl pki issue {} NODE",
                    dir.display()
                ));
            });
        }
        Pki::Issue { dir, node, days } => {
            let issued = Authority::open(&dir)?.issue(&node, days)?;
            show_issued(&dir, &issued, as_json, "issued");
        }
        Pki::Rotate { dir, node, days } => {
            let issued = Authority::open(&dir)?.rotate(&node, days)?;
            show_issued(&dir, &issued, as_json, "rotated");
        }
        Pki::Revoke {
            dir,
            node,
            old,
            serial,
        } => {
            let revoked = Authority::open(&dir)?.revoke(&node, old, serial.as_deref())?;
            let value = json!({
                "node": node,
                "revoked": revoked,
                "copy": [copy(&dir, authority::CRL, "crl.pem", "0644")],
            });
            show(&value, as_json, || {
                for serial in &revoked {
                    say::result(format_args!("revoked: certificate {serial} of {node}"));
                }
                say::result(format_args!(
                    "copy to every node, which reads it by itself:"
                ));
                show_copies(&value["copy"]);
                say::result(format_args!("sessions that run go on"));
            });
        }
    }
    Ok(Exit::Done)
}

fn show_issued(dir: &Path, issued: &Issued, as_json: bool, what: &str) {
    let folder = PathBuf::from(authority::NODES).join(&issued.node);
    let config = format!(
        "[tls]\nca = \"{ON_THE_NODE}/ca.pem\"\ncert = \"{ON_THE_NODE}/cert.pem\"\n\
         key = \"{ON_THE_NODE}/key.pem\"\ncrl = \"{ON_THE_NODE}/crl.pem\"\n"
    );
    let value = json!({
        "node": issued.node,
        "serial": issued.serial,
        "not_after": issued.not_after,
        "copy": [
            copy(dir, authority::CA, "ca.pem", "0644"),
            copy(dir, authority::CRL, "crl.pem", "0644"),
            copy(dir, folder.join(authority::CERT), "cert.pem", "0644"),
            copy(dir, folder.join(authority::KEY), "key.pem", "0600"),
        ],
        "config": config,
    });
    show(&value, as_json, || {
        say::result(format_args!(
            "{what}: certificate {} for {}, good until {}",
            issued.serial, issued.node, issued.not_after
        ));
        say::result(format_args!(
            "copy to {}, which reads changed files by itself:",
            issued.node
        ));
        show_copies(&value["copy"]);
        say::result(format_args!("in its data plane's configuration:"));
        for line in config.lines() {
            say::result(format_args!("  {line}"));
        }
    });
}

fn copy(dir: &Path, from: impl AsRef<Path>, to: &str, mode: &str) -> Value {
    json!({ "from": dir.join(from), "to": format!("{ON_THE_NODE}/{to}"), "mode": mode })
}

fn show_copies(copies: &Value) {
    for copy in copies.as_array().into_iter().flatten() {
        let [from, to, mode] = ["from", "to", "mode"].map(|key| copy[key].as_str().unwrap_or(""));
        say::result(format_args!("  {from} -> {to} (mode {mode})"));
    }
}

fn show(value: &Value, as_json: bool, for_people: impl FnOnce()) {
    if as_json {
        say::result(format_args!("{value}"));
    } else {
        for_people();
    }
}
