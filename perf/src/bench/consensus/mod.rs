//! The replicated log beside etcd: three members each, over loopback, logs on the same disk.
//!
//! In: how many rounds. Out: commit latency and rate, with 1 and with 64 clients. Promises: a commit is on
//! a majority's disks with both; clients speak to the leader over the network with both, ours over
//! mutual TLS, etcd's in clear; both take turns in one run, and each round's figures are kept.

mod etcd;
mod ours;

use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::row::{Row, percentile};

const ROUNDS: usize = 5;
/// Bytes of a value: about what a flag's change or a decision takes.
pub(super) const VALUE_BYTES: usize = 256;

/// Clients, and commits of each in a round.
const LOADS: [(usize, usize); 2] = [(1, 300), (64, 60)];

/// What one round took.
struct Round {
    latencies_us: Vec<f64>,
    rate_per_s: f64,
}

/// A client's connection: commits one value and returns when it is committed.
pub(super) trait Client: Send + 'static {
    fn commit(
        &mut self,
        number: u64,
    ) -> impl std::future::Future<Output = anyhow::Result<()>> + Send;
}

pub(super) fn run(rounds: Option<usize>) -> anyhow::Result<Vec<Row>> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(measure(rounds.unwrap_or(ROUNDS)))
}

async fn measure(rounds: usize) -> anyhow::Result<Vec<Row>> {
    let dir = tempfile::tempdir().context("no folder for the logs")?;
    let etcd = etcd::Etcd::start(dir.path()).await?;
    let ours = ours::Ours::start(dir.path()).await?;
    let mut rows = Vec::new();
    for (clients, commits) in LOADS {
        let mut taken: [Vec<Round>; 2] = [Vec::new(), Vec::new()];
        for round in 0..=rounds {
            let mut their_clients = Vec::new();
            let mut our_clients = Vec::new();
            for _ in 0..clients {
                their_clients.push(etcd.client().await?);
                our_clients.push(ours.client().await?);
            }
            let one = load(our_clients, commits).await.context("ours")?;
            let two = load(their_clients, commits).await.context("etcd")?;
            // The first round fills caches and connections.
            if round > 0 {
                taken[0].push(one);
                taken[1].push(two);
            }
        }
        rows.extend(compared(clients, &taken));
    }
    Ok(rows)
}

async fn load<C: Client>(clients: Vec<C>, commits: usize) -> anyhow::Result<Round> {
    let began = Instant::now();
    let tasks: Vec<_> = clients
        .into_iter()
        .map(|mut client| {
            tokio::spawn(async move {
                let mut latencies = Vec::with_capacity(commits);
                for number in 0..commits {
                    let asked = Instant::now();
                    client.commit(number as u64 + 1).await?;
                    latencies.push(asked.elapsed());
                }
                anyhow::Ok(latencies)
            })
        })
        .collect();
    let mut latencies: Vec<Duration> = Vec::new();
    for task in tasks {
        latencies.extend(task.await.context("a client ended")??);
    }
    let took = began.elapsed();
    let in_us = |latency: &Duration| latency.as_secs_f64() * 1e6;
    Ok(Round {
        rate_per_s: latencies.len() as f64 / took.as_secs_f64(),
        latencies_us: latencies.iter().map(in_us).collect(),
    })
}

fn compared(clients: usize, taken: &[Vec<Round>; 2]) -> Vec<Row> {
    let pick = |at: usize, percent: u32| -> Vec<f64> {
        let rounds = taken[at].iter();
        rounds
            .filter_map(|round| percentile(&round.latencies_us, percent))
            .collect()
    };
    let rates =
        |at: usize| -> Vec<f64> { taken[at].iter().map(|round| round.rate_per_s).collect() };
    let name = |what: &str| format!("consensus, {what}, {clients} client(s), against etcd");
    let note = "3 members on one machine and one disk; medians of rounds";
    vec![
        Row::new(&name("commit p50"), "us", &pick(0, 50), &pick(1, 50)).noted(note),
        Row::new(&name("commit p99"), "us", &pick(0, 99), &pick(1, 99)),
        Row::new(&name("rate"), "commits/s", &rates(0), &rates(1)),
    ]
}
