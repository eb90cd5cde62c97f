//! Clients that write and read one register all the while, and keep nodes out of a flag: one client at each node.
//!
//! In: nodes. Out: a [`History`] of the register, and the names that were acknowledged in the set. Promises: each
//! value is written by one request, which is sent again only with its idempotency key and to the same node, so that
//! it cannot happen twice; what became of a request is never made up: without an answer that says so, it is unknown.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dwcp_lab::netns::Host;
use serde_json::{Value, json};
use stateright::semantics::register::{RegisterOp, RegisterRet};

use super::history::{History, Share};
use super::rest::{self, Asked, Said};

/// The register is this flag's share.
pub const REGISTER: &str = "dwcp_v3_hde";
/// The set is the nodes that this flag keeps out.
pub const SET: &str = "dwcp_v3_amst";
/// Longer than a node needs to find another leader.
const ANSWER: Duration = Duration::from_millis(1_500);
/// After this a client goes on to something else.
const PATIENCE: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(50);

/// What all clients of a trial write down.
pub struct Notes {
    pub history: History,
    /// Names whose addition to the set was acknowledged.
    pub added: Mutex<BTreeSet<String>>,
    next: AtomicU32,
    /// Requests that were answered when they were sent again.
    pub replayed: AtomicU32,
}

impl Notes {
    pub fn new(first: Share) -> Arc<Self> {
        Arc::new(Self {
            history: History::new(first),
            added: Mutex::default(),
            next: AtomicU32::new(1),
            replayed: AtomicU32::new(0),
        })
    }
}

/// One client.
pub struct Client {
    pub notes: Arc<Notes>,
    pub id: usize,
    pub stop: Arc<AtomicBool>,
}

/// Clients at work.
pub struct Clients {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Clients {
    pub fn begin(hosts: Vec<Arc<Host>>, notes: &Arc<Notes>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = hosts.into_iter().enumerate().map(|(id, host)| {
            let client = Client {
                notes: notes.clone(),
                id,
                stop: stop.clone(),
            };
            std::thread::spawn(move || host.enter(|| client.work()).unwrap())
        });
        Self {
            threads: threads.collect(),
            stop,
        }
    }

    /// Returns when all have ended.
    pub fn end(self) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads {
            thread.join().unwrap();
        }
    }
}

/// The register's value in a flag.
pub fn share(flag: &Value) -> Option<Share> {
    let percentage = flag["percentage"].as_f64()?;
    Some((percentage * 1_000.0).round() as Share)
}

impl Client {
    fn over(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    fn work(&self) {
        let mut turn = self.id;
        while !self.over() {
            turn += 1;
            let served = match turn % 8 {
                0 => self.add(),
                2 | 5 | 7 => self.write(),
                _ => self.read().is_some(),
            };
            std::thread::sleep(if served { PAUSE } else { 2 * PAUSE });
        }
    }

    /// What the nodes agree on now.
    pub fn read(&self) -> Option<Share> {
        let open = self.notes.history.begin(self.id, RegisterOp::Read);
        let path = format!("/v1/feature-flags/{REGISTER}?agreed=true");
        let Said::Answer(200, flag, _) = rest::get(&path, ANSWER) else {
            return None;
        };
        let value = share(&flag)?;
        self.notes.history.end(open, RegisterRet::ReadOk(value));
        Some(value)
    }

    /// A value that nobody wrote before; was it acknowledged?
    pub fn write(&self) -> bool {
        let value = self.notes.next.fetch_add(1, Ordering::SeqCst);
        let body = json!({
            "feature": REGISTER, "enabled": true, "percentage": f64::from(value) / 1_000.0,
        });
        let open = self.notes.history.begin(self.id, RegisterOp::Write(value));
        match self.once("/v1/feature-flags", &body, &format!("value-{value}")) {
            Outcome::Done => {
                self.notes.history.end(open, RegisterRet::WriteOk);
                true
            }
            Outcome::Never => {
                self.notes.history.never(open);
                false
            }
            Outcome::Unknown => false,
        }
    }

    fn add(&self) -> bool {
        let number = self.notes.next.fetch_add(1, Ordering::SeqCst);
        let name = format!("n{number}");
        let body = json!({ "feature": SET, "nodes": [name] });
        let done = self.once("/v1/feature-flags/exclude", &body, &name);
        if matches!(done, Outcome::Done) {
            self.notes.added.lock().unwrap().insert(name);
            return true;
        }
        false
    }

    /// Has a change made once, however often it must be asked for.
    fn once(&self, path: &str, body: &Value, key: &str) -> Outcome {
        let end = Instant::now() + PATIENCE;
        let mut sent = false;
        loop {
            let said = rest::send(Asked {
                method: "POST",
                path,
                body: Some(body),
                key: Some(key),
                within: ANSWER,
            });
            match said {
                Said::Answer(200, _, replayed) => {
                    self.notes
                        .replayed
                        .fetch_add(u32::from(replayed), Ordering::SeqCst);
                    return Outcome::Done;
                }
                // The first one is still at it, or died over it.
                Said::Answer(409, ..) if sent => {}
                // It may still happen, and its key is free again: sent once more, it could happen twice.
                Said::Answer(500.., ..) => return Outcome::Unknown,
                Said::Answer(status, words, _) => panic!("{path}: {status} {words}"),
                Said::NotSent if !sent => return Outcome::Never,
                Said::NotSent => {}
                Said::NoAnswer => sent = true,
            }
            if self.over() || Instant::now() >= end {
                return Outcome::Unknown;
            }
            std::thread::sleep(2 * PAUSE);
        }
    }
}

enum Outcome {
    Done,
    /// Nobody heard of it.
    Never,
    Unknown,
}
