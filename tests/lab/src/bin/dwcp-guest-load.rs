//! The guest's only program: memory with realistic content that keeps changing.
//!
//! In: `dwcp.load_mb=` and `dwcp.seed=` on the kernel's command line; text commands on the second
//! serial port (`verify`, `rate PAGES_PER_S`, `hot PAGES`, `flip PAGE`). Out, on the same port: `T SEQ
//! CLOCK_US EDITS` every 10 ms, and an answer per command. Promise: `VERIFY OK` only when every
//! byte equals the model and the number of edits made equals the sum of the versions.
//! Plain std, so that it can be built as one static file by the compiler alone. The guest has no
//! swap, hence the memory stays where it is without being locked.

#[path = "../content.rs"]
#[allow(dead_code)]
mod content;

use content::{Model, PAGE_BYTES, Page, Rng, fold};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::{Duration, Instant};

const TICK: Duration = Duration::from_millis(10);
/// How much of a tick verification may use, so that ticks keep their time.
const VERIFY_SLICE: Duration = Duration::from_millis(7);

struct Load {
    model: Model,
    memory: Vec<Page>,
    versions: Vec<u32>,
    edits: u64,
    hot_pages: u64,
    rng: Rng,
}

struct Check {
    next: usize,
    sum: u64,
    bad: u64,
    first_bad: Option<usize>,
}

impl Load {
    fn new(load_mb: usize, seed: u64, serial: &mut File) -> io::Result<Self> {
        let pages = load_mb * 1024 * 1024 / PAGE_BYTES;
        let model = Model::new(seed);
        // Written page by page on purpose: an untouched page would not be part of guest memory.
        let mut memory: Vec<Page> = Vec::with_capacity(pages);
        for page in 0..pages {
            let mut bytes = [0; PAGE_BYTES];
            model.render(page as u64, 0, &mut bytes);
            memory.push(bytes);
            if page.is_multiple_of(16_384) {
                writeln!(serial, "FILL page={page} of={pages}")?;
            }
        }
        Ok(Self {
            model,
            memory,
            versions: vec![0; pages],
            edits: 0,
            hot_pages: (pages as u64 / 8).max(1),
            rng: Rng::new(seed, 0, 99),
        })
    }

    /// One edit of one page; the square of a draw makes a few pages much hotter than the rest.
    fn edit(&mut self) {
        let draw = self.rng.next_u64() >> 32;
        let rank = (((draw * draw) >> 32) * self.hot_pages) >> 32;
        let page = rank.wrapping_mul(2_654_435_761) % self.memory.len() as u64;
        let index = usize::try_from(page).unwrap_or(0);
        self.versions[index] += 1;
        self.model
            .advance(page, self.versions[index], &mut self.memory[index]);
        self.edits += 1;
    }

    /// Checks pages until done or until the slice is used up; true when done.
    fn check(&self, check: &mut Check, until: Instant) -> bool {
        let mut expected = [0; PAGE_BYTES];
        while check.next < self.memory.len() {
            let page = check.next;
            self.model
                .render(page as u64, self.versions[page], &mut expected);
            if self.memory[page] != expected {
                check.bad += 1;
                check.first_bad.get_or_insert(page);
            }
            check.sum = fold(check.sum, &self.memory[page]);
            check.next += 1;
            if page.is_multiple_of(16) && Instant::now() >= until {
                return false;
            }
        }
        true
    }

    fn verdict(&self, check: &Check) -> String {
        let versions: u64 = self.versions.iter().map(|v| u64::from(*v)).sum();
        let (pages, sum, edits) = (self.memory.len(), check.sum, self.edits);
        if check.bad == 0 && versions == edits {
            format!("VERIFY OK pages={pages} sum={sum:016x} edits={edits}")
        } else {
            let first = check.first_bad.unwrap_or(pages);
            format!(
                "VERIFY BAD pages={pages} sum={sum:016x} edits={edits} versions={versions} \
                 bad={} first={first}",
                check.bad
            )
        }
    }
}

fn kernel_argument(name: &str, default: u64) -> u64 {
    let line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    line.split_whitespace()
        .filter_map(|word| word.strip_prefix(name)?.strip_prefix('='))
        .find_map(|value| value.parse().ok())
        .unwrap_or(default)
}

fn commands(serial: File) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(serial).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

fn main() -> io::Result<()> {
    let path = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "/dev/ttyS1".into());
    let mut serial = OpenOptions::new().read(true).write(true).open(path)?;
    let commands = commands(serial.try_clone()?);
    let load_mb = usize::try_from(kernel_argument("dwcp.load_mb", 64)).unwrap_or(64);
    let mut load = Load::new(load_mb, kernel_argument("dwcp.seed", 1), &mut serial)?;
    writeln!(serial, "READY pages={}", load.memory.len())?;

    let start = Instant::now();
    let (mut seq, mut rate, mut owed) = (0_u64, 0_u64, 0_f64);
    let mut check: Option<Check> = None;
    let mut due = start;
    let mut last = start;
    loop {
        let now = Instant::now();
        let clock_us = (now - start).as_micros();
        serial.write_all(format!("T {seq} {clock_us} {}\n", load.edits).as_bytes())?;
        seq += 1;
        // An emulated processor may fall behind: what is owed is capped, never piled up.
        owed = (owed + rate as f64 * (now - last).as_secs_f64()).min(rate as f64 / 10.0 + 1.0);
        last = now;
        due = (due + TICK).max(now);
        while owed >= 1.0 && Instant::now() < due {
            load.edit();
            owed -= 1.0;
        }
        match commands.try_recv() {
            Ok(line) => {
                let (word, argument) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
                let number: u64 = argument.parse().unwrap_or(0);
                match word {
                    "verify" => {
                        check = Some(Check {
                            next: 0,
                            sum: 0,
                            bad: 0,
                            first_bad: None,
                        })
                    }
                    "rate" => rate = number,
                    "hot" => load.hot_pages = number.clamp(1, load.memory.len() as u64),
                    // Damages one bit outside the model, so that a test sees VERIFY BAD.
                    "flip" => {
                        let index = usize::try_from(number).unwrap_or(0) % load.memory.len();
                        load.memory[index][100] ^= 1;
                    }
                    _ => {}
                }
                if word != "verify" {
                    serial.write_all(format!("DONE {word} {number}\n").as_bytes())?;
                }
            }
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => return Ok(()),
        }
        if let Some(running) = check.as_mut()
            && load.check(running, Instant::now() + VERIFY_SLICE)
        {
            let answer = load.verdict(running);
            serial.write_all(format!("{answer}\n").as_bytes())?;
            check = None;
        }
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
}
