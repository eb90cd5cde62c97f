//! Makes the threads of a data plane, and ends them in order.
//!
//! In: a configuration and its key. Out: a running data plane. Promises: it is ready when
//! [`Engine::start`] returns; stopping fails running sessions closed, but for a switchover, which is waited
//! for: workers first, then encoders, the door, the border.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use dwcp_api::{Version, monotonic_ns};

use super::board::Board;
use super::budget::MemoryBudget;
use super::control::{Control, Identity};
use super::door::{Door, DoorOptions};
use super::drivers::{Drivers, Seat};
use super::encoders::Encoders;
use super::keeper::Keeper;
use super::mailbox::{Sender, mailbox};
use super::messages::{Offer, ToDoor, ToWorker};
use super::path_choice::PathChoice;
use super::room::Room;
use super::worker::{Worker, WorkerOptions};
use crate::config::{Config, IdlePolicy};
use crate::tls::credentials::Credentials;
use crate::transport::NodeId;
use crate::transport::handshake::Way;
use crate::transport::wire::keys::Psk;

/// Messages that may wait for one thread.
const MAIL_SLOTS: usize = 1024;

/// A running data plane.
pub struct Engine {
    workers: Vec<(Sender<ToWorker>, JoinHandle<()>)>,
    encoders: (Encoders, Vec<JoinHandle<()>>),
    keeper: Option<(Keeper, Vec<JoinHandle<()>>)>,
    door: (Sender<ToDoor>, JoinHandle<()>),
    control: JoinHandle<()>,
    stop: Arc<AtomicBool>,
    listen: std::net::SocketAddr,
    board: Arc<Board>,
}

impl Engine {
    /// Starts every thread.
    ///
    /// # Errors
    /// The first thing that could not be made, with what to do about it.
    pub fn start(config: Config) -> Result<Self> {
        let psk = if config.uses_psk() {
            Psk(blake3::derive_key(
                "dwcp pre-shared key",
                &config.read_psk()?,
            ))
        } else {
            // Nobody has it, so nobody is let in by it.
            let mut nobodys = [0; 32];
            getrandom::fill(&mut nobodys).context("random bytes")?;
            Psk(nobodys)
        };
        let credentials = config
            .tls
            .as_ref()
            .map(|tls| Credentials::load(tls, &config.node))
            .transpose()?;
        let config = Arc::new(config);
        let mut instance = [0; 8];
        getrandom::fill(&mut instance).context("random bytes")?;
        let instance = u64::from_le_bytes(instance);
        let board = Arc::new(Board::new(instance).context("shared segments")?);
        let offer = Offer {
            max_version: if config.max_version == 1 {
                Version::V1
            } else {
                Version::V3
            },
            store_bytes: config.store_bytes,
            window_limit_bytes: config.window_limit_bytes,
            lanes_v1: config.lanes_v1,
            lanes_v3: config.lanes_offered(),
            baselines: config.baseline.is_some(),
        };
        let budget = MemoryBudget::new(config.memory_limit_bytes);
        warn_of_smaller_sessions(&config, offer);
        let cores = pick_cores(&config.cores)?;
        let idle = config.idle.unwrap_or_else(|| {
            let few = std::thread::available_parallelism().map_or(1, usize::from) <= 2;
            if few {
                IdlePolicy::Shared
            } else {
                IdlePolicy::Dedicated
            }
        });

        let mut drivers = Drivers::open(&config, cores.len())?;
        let seats = drivers.seats(cores.len());
        let preferred: Vec<Way> = (0..cores.len()).map(|w| drivers.preferred(w)).collect();

        let (door_sender, door_mail) = mailbox(MAIL_SLOTS)?;
        let (control_sender, control_mail) = mailbox(MAIL_SLOTS)?;
        let mut senders = Vec::new();
        let mut mails = Vec::new();
        for _ in &cores {
            let (sender, mail) = mailbox(MAIL_SLOTS)?;
            senders.push(sender);
            mails.push(mail);
        }
        let door_options = DoorOptions {
            psk,
            credentials,
            node: NodeId::of_name(&config.node),
            offer,
            budget: budget.clone(),
            listen: config.listen,
            targets: config.incoming.clone(),
            drivers,
            paths: PathChoice::new(config.tcp_congestion),
            pool: config.pool.clone(),
            board: Arc::clone(&board),
        };
        let mut door = Door::new(door_options, door_mail, senders.clone())
            .with_context(|| format!("listening for peers on {}", config.listen))?;
        let listen = door.local_address()?;
        let identity = Identity {
            instance,
            node: config.node.clone(),
            listen: config.advertise.unwrap_or(listen).to_string(),
            max_version: config.max_version,
        };
        let mut control = Control::new(
            identity,
            config.control_socket.clone(),
            Arc::clone(&board),
            control_mail,
            senders.clone(),
        )?;

        let (encoders, encoder_handles) = Encoders::start(
            config.encoders(cores.len()),
            cores.len(),
            &encoder_cores(idle, &cores),
        )
        .context("threads for encoding")?;
        let keeper = config.baseline.as_ref().map(Keeper::start);
        let keeper = keeper.transpose().context("the store of baselines")?;
        let mut workers = Vec::new();
        for (index, (((core, mail), sender), seat)) in cores
            .into_iter()
            .zip(mails)
            .zip(&senders)
            .zip(seats)
            .enumerate()
        {
            let options = WorkerOptions {
                index,
                config: Arc::clone(&config),
                offer,
                budget: budget.clone(),
                way: preferred[index],
                board: Arc::clone(&board),
                mail,
                own: sender.clone(),
                encoders: encoders.clone(),
                keeper: keeper.as_ref().map(|(keeper, _)| keeper.clone()),
                door: door_sender.clone(),
                control: control_sender.clone(),
                idle,
            };
            let (ready, is_ready) = std::sync::mpsc::channel();
            let handle = std::thread::Builder::new()
                .name(format!("worker-{index}"))
                .spawn(move || run_worker(options, core, seat, &ready))?;
            is_ready
                .recv()
                .context("a worker ended before it was ready")?
                .with_context(|| format!("worker {index} on core {}", core.id))?;
            workers.push((sender.clone(), handle));
        }
        let door_handle = std::thread::Builder::new()
            .name("door".to_owned())
            .spawn(move || door.run())?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let control_handle = std::thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || control.run(&|| stopped.load(Ordering::Acquire)))?;
        Ok(Self {
            workers,
            encoders: (encoders, encoder_handles),
            keeper,
            door: (door_sender, door_handle),
            control: control_handle,
            stop,
            listen,
            board,
        })
    }

    /// Where peers connect.
    #[must_use]
    pub const fn listen(&self) -> std::net::SocketAddr {
        self.listen
    }

    /// Reads the certificate files again; they are also read when they change.
    pub fn read_files(&self) {
        let _ = self.door.0.send(ToDoor::ReadFiles);
    }

    /// Has a worker or an encoder ended by itself? Then the data plane must end too.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        let workers = self.workers.iter().map(|(_, handle)| handle);
        workers.chain(&self.encoders.1).any(JoinHandle::is_finished)
    }

    /// Has every worker taken a turn lately? One without work takes one every half second.
    #[must_use]
    pub fn is_turning(&self, within: Duration) -> bool {
        let now_ns = monotonic_ns();
        let within_ns = u64::try_from(within.as_nanos()).unwrap_or(u64::MAX);
        (0..self.workers.len()).all(|index| {
            let last_ns = self.board.worker(index).map(|it| it.last_turn_ns.get());
            last_ns.is_ok_and(|last_ns| now_ns.saturating_sub(last_ns) <= within_ns)
        })
    }

    /// Fails what runs closed and ends every thread. A source session in its switchover is waited for.
    pub fn stop(self) {
        for (sender, _) in &self.workers {
            let _ = sender.send(ToWorker::Stop);
        }
        for (_, handle) in self.workers {
            let _ = handle.join();
        }
        self.encoders.0.stop();
        for handle in self.encoders.1 {
            let _ = handle.join();
        }
        if let Some((keeper, handles)) = self.keeper {
            keeper.stop();
            // The last that could ask them.
            drop(keeper);
            for handle in handles {
                let _ = handle.join();
            }
        }
        let _ = self.door.0.send(ToDoor::Stop);
        let _ = self.door.1.join();
        // Release: everything the workers said is in the control thread's mailbox before it stops.
        self.stop.store(true, Ordering::Release);
        let _ = self.control.join();
    }
}

fn run_worker(
    options: WorkerOptions,
    core: core_affinity::CoreId,
    seat: Seat,
    ready: &std::sync::mpsc::Sender<Result<()>>,
) {
    let index = options.index;
    if !core_affinity::set_for_current(core) {
        tracing::warn!(
            index,
            core = core.id,
            "the worker is not pinned: the system refused"
        );
    }
    let made = seat
        .lanes()
        .and_then(|lanes| Worker::new(options, lanes).map_err(anyhow::Error::from));
    match made {
        Ok(mut worker) => {
            let _ = ready.send(Ok(()));
            if let Err(error) = worker.run() {
                tracing::error!(index, %error, "a worker broke; the data plane ends");
            }
        }
        Err(error) => {
            let _ = ready.send(Err(error));
        }
    }
}

/// What is configured for one session may be more than any will get.
fn warn_of_smaller_sessions(config: &Config, offer: Offer) {
    let bytes = Room::wish(offer, true, config.encoders(config.cores.len().max(1))).bytes();
    if bytes > config.memory_limit_bytes / 2 {
        tracing::warn!(
            bytes,
            memory_limit_bytes = config.memory_limit_bytes,
            "a session with store_bytes and window_limit_bytes as configured takes more than half of the memory of \
             all: it is opened with less; raise memory_limit_bytes, or lower the two"
        );
    }
}

/// Where encoders may run: anywhere, but not on cores that workers have for themselves.
fn encoder_cores(idle: IdlePolicy, workers: &[core_affinity::CoreId]) -> Vec<usize> {
    if idle != IdlePolicy::Dedicated {
        return Vec::new();
    }
    let all = core_affinity::get_core_ids().unwrap_or_default();
    let free = all.iter().filter(|core| !workers.contains(core));
    free.map(|core| core.id).collect()
}

fn pick_cores(wanted: &[usize]) -> Result<Vec<core_affinity::CoreId>> {
    let available = core_affinity::get_core_ids().context("the system does not say its cores")?;
    if wanted.is_empty() {
        let last = available.last().context("the system has no core for us")?;
        return Ok(vec![*last]);
    }
    wanted
        .iter()
        .map(|id| {
            available.iter().find(|core| core.id == *id).copied().with_context(|| {
                format!(
                    "cores names {id}, but this process may use {:?}; correct cores or its cpuset",
                    available.iter().map(|core| core.id).collect::<Vec<_>>()
                )
            })
        })
        .collect()
}
