//! Real migration streams, recorded once and replayed as often as wanted.
//!
//! In: guests by name, a folder. Out: a file for each guest and state, a stream as QEMU itself sent it while
//! the guest worked. Promises: whoever finds a file there finds all of it; the guest was seen at work before
//! each recording, and changed pages meanwhile, so the stream sends some of them again.

use std::fs;
use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use dwcp_lab::guest::Guest as LabGuest;
use dwcp_lab::ticks::Side;
use serde_json::{Value, json};

use crate::compare::{self, Guest, Several, several};

/// Longer than it takes on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(300);
/// What a guest is given to get back to its work, and between two migrations of the same.
const WORKS: Duration = Duration::from_secs(3);
const STAYS_AWAY: Duration = Duration::from_secs(20);
/// How much later each of the similar guests is recorded.
const APART: Duration = Duration::from_secs(2);
const SIMILAR: u32 = 3;
/// The folder, beside the one of the programs.
const FOLDER: &str = "corpus";

/// What to record and where.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// Guests: load, redis, postgres, build, idle; commas between them, or all
    #[arg(long, value_parser = several::<Guest>)]
    guest: Several<Guest>,
    /// Where the streams go; by default beside the built programs
    #[arg(long)]
    folder: Option<PathBuf>,
    /// Keep the saved guests with an operating system here; by default beside the built programs
    #[arg(long)]
    cache: Option<PathBuf>,
    /// How fast QEMU may send, in MB/s: the slower, the more pages are sent again
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    mb_per_s: u64,
    /// Record three more copies of each guest, each some time further on in its work
    #[arg(long)]
    similar: bool,
    /// Record streams that are there already once more
    #[arg(long)]
    again: bool,
}

/// Where a guest's stream in this state is.
#[must_use]
pub fn file(folder: &Path, guest: Guest, state: &str) -> PathBuf {
    folder.join(format!("{}-{state}.stream", guest.name()))
}

/// The folder for streams when none is named.
///
/// # Errors
/// The program's own place cannot be told.
pub fn default_folder() -> anyhow::Result<PathBuf> {
    compare::beside_programs(FOLDER)
}

/// Records.
///
/// # Errors
/// What keeps a stream from being recorded; those before it are kept.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let folder = match &arguments.folder {
        Some(folder) => folder.clone(),
        None => default_folder()?,
    };
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let cache = match &arguments.cache {
        Some(cache) => cache.clone(),
        None => compare::default_cache()?,
    };
    for guest in arguments.guest.iter() {
        let saved = compare::saved(guest, &cache)?;
        let wanted = |state: &str| {
            let path = file(&folder, guest, state);
            (arguments.again || !path.exists()).then_some(path)
        };
        let (first, back) = (wanted("first"), wanted("back"));
        if first.is_some() || back.is_some() {
            let mut running = saved.restored(None, false)?;
            std::thread::sleep(WORKS);
            saved.works(&running, Side::Source, 0)?;
            let first = first.unwrap_or_else(|| file(&folder, guest, "first"));
            record(&mut running, &first, arguments.mb_per_s)?;
            // It goes on as the one that arrived elsewhere would, and comes back later.
            running.execute("cont", Value::Null)?;
            let mark = running.ticks().mark();
            std::thread::sleep(STAYS_AWAY);
            saved.works(&running, Side::Source, mark)?;
            let back = back.unwrap_or_else(|| file(&folder, guest, "back"));
            record(&mut running, &back, arguments.mb_per_s)?;
        }
        if arguments.similar {
            for nth in 1..=SIMILAR {
                let Some(path) = wanted(&format!("similar{nth}")) else {
                    continue;
                };
                let mut running = saved.restored(None, false)?;
                std::thread::sleep(WORKS + APART * nth);
                saved.works(&running, Side::Source, 0)?;
                record(&mut running, &path, arguments.mb_per_s)?;
            }
        }
    }
    Ok(())
}

/// Lets the guest migrate into a file. It stands still afterwards.
fn record(guest: &mut LabGuest, path: &Path, mb_per_s: u64) -> anyhow::Result<()> {
    let socket = guest.dir().join("recorded");
    let listener = UnixListener::bind(&socket)?;
    let parameters = json!({ "max-bandwidth": mb_per_s * 1_000_000, "downtime-limit": 300 });
    guest.execute("migrate-set-parameters", parameters)?;
    let uri = format!("unix:{}", socket.display());
    guest.execute("migrate", json!({ "uri": uri }))?;
    let (mut from, _) = listener.accept()?;
    from.set_read_timeout(Some(PATIENCE))?;
    let partial = path.with_extension("partial");
    let mut to = fs::File::create(&partial).with_context(|| partial.display().to_string())?;
    let bytes = io::copy(&mut from, &mut to)?;
    fs::remove_file(&socket)?;
    let state = guest.qmp().wait_migration(PATIENCE)?;
    if state["status"] != "completed" {
        bail!("QEMU did not complete the recorded migration: {state}");
    }
    let passes = state["ram"]["dirty-sync-count"].as_u64().unwrap_or(0);
    ensure!(passes >= 2, "no page was sent again: {state}");
    fs::rename(&partial, path)?;
    println!("{}: {bytes} bytes, {passes} passes", path.display());
    Ok(())
}
