//! A WAN link for shell scripts: two existing network namespaces, a line between them, and a
//! control socket that takes one command per connection and answers one line of JSON.
//!
//! Commands: `set RATE_MBIT DELAY_MS LOSS_PERCENT [QUEUE_MS]`, `cut`, `restore`, `bytes`,
//! `flows PORT`, `cut-flow PORT INDEX`. Try: `echo bytes | socat - UNIX-CONNECT:/run/link.sock`.

use anyhow::{Context, Result, bail};
use clap::Parser;
use dwcp_lab::link::{LinkConfig, Shape, WanLink};
use dwcp_lab::netns::Host;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

/// No command is longer.
const MAX_LINE_BYTES: u64 = 256;

#[derive(Parser)]
#[command(about = "A line with rate, delay and loss between two network namespaces")]
struct Arguments {
    /// The first namespace; gets 10.99.<number>.1 on wan<number>.
    #[arg(long)]
    a: String,
    /// The second namespace; gets 10.99.<number>.2.
    #[arg(long)]
    b: String,
    /// RATE_MBIT DELAY_MS LOSS_PERCENT [QUEUE_MS], one way, the same both ways.
    #[arg(long, default_value = "200 40 0")]
    link: Shape,
    /// MTU of both ends in bytes.
    #[arg(long, default_value_t = 1_500)]
    mtu: u32,
    /// Tells several links apart.
    #[arg(long, default_value_t = 1)]
    number: u8,
    /// Where commands are taken.
    #[arg(long)]
    control: PathBuf,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let (a, b) = (Host::open(&arguments.a)?, Host::open(&arguments.b)?);
    let (mtu_bytes, number) = (arguments.mtu, arguments.number);
    let config = LinkConfig {
        mtu_bytes,
        number,
        ..LinkConfig::symmetric(arguments.link)
    };
    let link = WanLink::start(&a, &b, config)?;
    let _ = std::fs::remove_file(&arguments.control);
    let listener = UnixListener::bind(&arguments.control)
        .with_context(|| format!("cannot listen on {}", arguments.control.display()))?;
    println!(
        "{}",
        json!({ "a": link.a, "b": link.b, "control": arguments.control })
    );
    for stream in listener.incoming().flatten() {
        // A client that hangs or leaves must not end the line.
        let _ = serve(&link, stream);
    }
    Ok(())
}

fn serve(link: &WanLink, mut stream: UnixStream) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut line = String::new();
    BufReader::new(stream.try_clone()?)
        .take(MAX_LINE_BYTES)
        .read_line(&mut line)?;
    let answer = obey(link, line.trim()).unwrap_or_else(|e| json!({ "error": e.to_string() }));
    writeln!(stream, "{answer}")?;
    Ok(())
}

fn obey(link: &WanLink, line: &str) -> Result<Value> {
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    match word {
        "set" => {
            let shape = rest.parse()?;
            link.set(shape, shape);
        }
        "cut" => link.cut(),
        "restore" => link.restore(),
        "bytes" => {
            let (traffic, cpu_ms) = (link.traffic(), link.cpu_ms());
            return Ok(
                json!({ "wire_bytes": link.wire_bytes(), "a_to_b": traffic[0],
                              "b_to_a": traffic[1], "cpu_ms": cpu_ms }),
            );
        }
        "flows" => return Ok(json!({ "flows": link.flows(rest.parse()?) })),
        "cut-flow" => {
            let (port, index) = rest.split_once(' ').context("give PORT and INDEX")?;
            let flow = link.cut_flow(port.parse()?, index.parse()?);
            return Ok(json!({ "cut": flow.context("there is no such flow")? }));
        }
        _ => bail!("unknown command {word:?}; know set, cut, restore, bytes, flows, cut-flow"),
    }
    Ok(json!({ "ok": true }))
}
