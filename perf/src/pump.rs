//! A stream that never ends, carried by two data planes. In: two hosts and a cable. Out: both nodes at
//! work, and how many bytes came out so far. Promises: the stream is one that the data plane understands,
//! with pages of every kind, again and again with changes, so that every stage has work; all of it ends
//! with the value.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use dwcp_dataplane::stream::testing::{RAM_SECTION, StreamBuilder};
use dwcp_lab::dir::LabDir;
use dwcp_lab::netns::{Cable, Host};
use dwcp_lab::stack::{DATA_PORT, Node, NodeConfig};
use dwcp_lab::watchdog::poll_until;

/// Pages of the guest that is sent.
const PAGES: u64 = 4096;
/// Different states of the guest, sent in turns.
const STATES: u64 = 3;
const PAGE_BYTES: usize = 4096;
const READ_BYTES: usize = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(60);
const TARGET: &str = "pumped";
/// Bytes that must have come out before anything is measured.
const WARM_BYTES: u64 = 256 << 20;

/// See the module.
pub(crate) struct Pump<'h> {
    nodes: [Node<'h>; 2],
    feeding: UnixStream,
    threads: Vec<JoinHandle<()>>,
    drained: Arc<AtomicU64>,
    _dir: LabDir,
}

impl<'h> Pump<'h> {
    /// Starts both nodes, each on a core of its own where there are two, and the stream.
    pub(crate) fn start(
        [a, b]: [&'h Host; 2],
        cable: &Cable,
        management: &Cable,
    ) -> anyhow::Result<Self> {
        let dir = LabDir::new("pump")?;
        let (from, to) = (dir.file("from"), dir.file("to"));
        let hypervisor = UnixListener::bind(&to)?;
        let passive = format!(
            "[[passive]]\nlisten = \"{}\"\npeer = \"{}:{DATA_PORT}\"\ntarget = \"{TARGET}\"\n",
            from.display(),
            cable.b
        );
        let incoming = format!(
            "[[incoming]]\ntarget = \"{TARGET}\"\nconnect = \"{}\"\n",
            to.display()
        );
        let mut source = NodeConfig::new("a", cable.a, management.a);
        source.dataplane_extra = core(0) + &passive;
        let mut destination = NodeConfig::new("b", cable.b, management.b);
        destination.dataplane_extra = core(1) + &incoming;
        let destination = Node::start(b, destination)?;
        let source = Node::start(a, source)?;
        let feeding = poll_until(PATIENCE, || UnixStream::connect(&from).ok())
            .context("nobody listens on the passive socket")?;
        let drained = Arc::new(AtomicU64::new(0));
        let feeder = feeding.try_clone()?;
        let counted = Arc::clone(&drained);
        let threads = vec![
            std::thread::spawn(move || feed(feeder)),
            std::thread::spawn(move || drain(&hypervisor, &counted)),
        ];
        let pump = Self {
            nodes: [source, destination],
            feeding,
            threads,
            drained,
            _dir: dir,
        };
        poll_until(PATIENCE, || (pump.bytes() > WARM_BYTES).then_some(()))
            .context("the stream does not flow")?;
        Ok(pump)
    }

    /// Bytes that came out so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.drained.load(Ordering::Relaxed)
    }

    /// Both nodes, the sending one first.
    pub(crate) fn nodes(&mut self) -> &mut [Node<'h>; 2] {
        &mut self.nodes
    }

    /// Both nodes to ask.
    pub(crate) const fn asked(&self) -> &[Node<'h>; 2] {
        &self.nodes
    }
}

impl Drop for Pump<'_> {
    fn drop(&mut self) {
        let _ = self.feeding.shutdown(Shutdown::Both);
        // The draining thread reads until nobody holds the other end: the data plane, and the control
        // plane that keeps a second descriptor of it.
        for node in &mut self.nodes {
            node.dataplane().kill();
            node.controlplane().kill();
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn core(index: usize) -> String {
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    let core = cores.get(index).or_else(|| cores.last());
    core.map_or_else(String::new, |core| format!("cores = [{}]\n", core.id))
}

fn feed(mut to: UnixStream) {
    let mut builder = StreamBuilder::new();
    builder.command(1, &[]).command(2, &1u32.to_be_bytes());
    builder.ram_start(&[("pc.ram", PAGES * PAGE_BYTES as u64)]);
    let mut sent = to.write_all(&builder.finish());
    let states: Vec<Vec<u8>> = (0..STATES).map(state).collect();
    for state in states.iter().cycle() {
        if sent.is_err() {
            // The pump ends, or the data plane did, which the measurement sees.
            return;
        }
        sent = to.write_all(state);
    }
}

fn drain(hypervisor: &UnixListener, drained: &AtomicU64) {
    let Ok((mut from, _)) = hypervisor.accept() else {
        return;
    };
    let mut buffer = vec![0; READ_BYTES];
    while let Ok(bytes @ 1..) = from.read(&mut buffer) {
        drained.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// The guest in one of its states, as a part of the stream: a sixth of the pages zero, a sixth noise, a
/// third numbers and a third text, and a little of each page other than in the state before.
fn state(number: u64) -> Vec<u8> {
    let mut builder = StreamBuilder::empty();
    builder.part(RAM_SECTION);
    let mut name = Some("pc.ram");
    for index in 0..PAGES {
        let mut random = Random(index.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        if index % 6 == 0 {
            builder.zero(name.take(), index);
            continue;
        }
        let mut page = [0; PAGE_BYTES];
        for word in page.as_chunks_mut::<8>().0 {
            let drawn = random.next();
            *word = match index % 6 {
                1 => drawn.to_le_bytes(),
                2 | 3 => (0xffff_8880_0000_0000 | (drawn % (1 << 24))).to_le_bytes(),
                _ => (*b"balance=").map(|letter| letter ^ (drawn % 4) as u8),
            };
        }
        let changed = (number * 512 + index % 64 * 8) as usize % PAGE_BYTES;
        page[changed..changed + 8].copy_from_slice(&(number + 1).to_le_bytes());
        builder.page(name.take(), index, &page);
    }
    builder.ram_eos();
    builder.finish()
}

struct Random(u64);

impl Random {
    /// Xorshift (Marsaglia 2003).
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_of_one_length_and_differ_a_little() {
        let (first, second) = (state(0), state(1));
        assert_eq!(first.len(), second.len());
        let other = first.iter().zip(&second).filter(|(a, b)| a != b).count();
        assert!(other > 1_000 && other < first.len() / 50, "{other}");
    }
}
