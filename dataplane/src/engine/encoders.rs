//! Threads that squeeze batches beside the workers, on cores that have nothing else to do.
//!
//! In: jobs that workers give away. Out: the same jobs, done, back with their sessions. Promises: a thread has
//! never more than [`JOBS_EACH_MAX`] jobs, so a worker that finds none with room does the work itself; a
//! thread without work sleeps; giving a job away takes no lock and no allocation.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::thread::{CpuSet, sched_setaffinity};

use super::mailbox::{Mailbox, Sender, mailbox};
use crate::session::aside::Job;

/// One at work and one that waits: a thread that is done finds the next without a worker's help.
const JOBS_EACH_MAX: usize = 2;

/// To one thread.
#[derive(Debug)]
enum ToEncoder {
    Squeeze(Box<Job>),
    Stop,
}

#[derive(Debug)]
struct Encoder {
    mail: Sender<ToEncoder>,
    jobs: Arc<AtomicUsize>,
}

/// A worker's way to the threads; see the module.
#[derive(Clone, Debug, Default)]
pub struct Encoders {
    threads: Arc<[Encoder]>,
    /// Sessions that send a guest.
    senders: Arc<AtomicUsize>,
    /// Threads that squeeze what these send: without any of them the workers, which else have enough to do.
    makers: usize,
}

/// A session sends a guest until this is dropped.
#[derive(Debug)]
pub struct Sends(Arc<AtomicUsize>);

impl Drop for Sends {
    fn drop(&mut self) {
        // Relaxed: an estimate for the choice of methods, which orders nothing.
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Room for one job at one thread. Given back when it is dropped.
#[derive(Debug)]
pub struct Room {
    jobs: Arc<AtomicUsize>,
}

impl Drop for Room {
    fn drop(&mut self) {
        // Relaxed: the count bounds jobs and orders nothing; a job itself goes through the mailbox.
        self.jobs.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Encoders {
    /// Starts `threads` threads beside so many workers, on `cores` if some are named.
    ///
    /// # Errors
    /// What the system said.
    pub fn start(
        threads: usize,
        workers: usize,
        cores: &[usize],
    ) -> io::Result<(Self, Vec<JoinHandle<()>>)> {
        let mut encoders = Vec::with_capacity(threads);
        let mut handles = Vec::with_capacity(threads);
        for index in 0..threads {
            let (mail, received) = mailbox(JOBS_EACH_MAX + 1)?;
            let jobs = Arc::new(AtomicUsize::new(0));
            encoders.push(Encoder { mail, jobs });
            let cores = cores.to_vec();
            let handle = std::thread::Builder::new()
                .name(format!("encoder-{index}"))
                .spawn(move || {
                    stay_on(&cores);
                    run(&received);
                })?;
            handles.push(handle);
        }
        let all = Self {
            threads: encoders.into(),
            senders: Arc::default(),
            makers: if threads == 0 { workers } else { threads },
        };
        Ok((all, handles))
    }

    /// How many threads there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.threads.len()
    }

    /// A session begins to send a guest.
    #[must_use]
    pub fn begin_sending(&self) -> Sends {
        self.senders.fetch_add(1, Ordering::Relaxed);
        Sends(Arc::clone(&self.senders))
    }

    /// Sessions that send a guest for each thread that squeezes what they send, and 1 at least: by so much longer
    /// than its work takes a session waits for it.
    #[must_use]
    pub fn crowd(&self) -> f32 {
        let senders = self.senders.load(Ordering::Relaxed) as f32;
        (senders / self.makers.max(1) as f32).max(1.0)
    }

    /// How many of them have nothing to do.
    #[must_use]
    pub fn idle(&self) -> usize {
        let idle = |encoder: &&Encoder| encoder.jobs.load(Ordering::Relaxed) == 0;
        self.threads.iter().filter(idle).count()
    }

    /// Gives a job to the thread that has least to do; answers the job when all have enough.
    ///
    /// # Errors
    /// The job itself.
    pub fn give(&self, mut job: Box<Job>) -> Result<(), Box<Job>> {
        let least = |encoder: &&Encoder| encoder.jobs.load(Ordering::Relaxed);
        let Some(encoder) = self.threads.iter().min_by_key(least) else {
            return Err(job);
        };
        let more = |jobs| (jobs < JOBS_EACH_MAX).then_some(jobs + 1);
        let (success, failure) = (Ordering::Relaxed, Ordering::Relaxed);
        if encoder.jobs.fetch_update(success, failure, more).is_err() {
            return Err(job);
        }
        job.room = Some(Room {
            jobs: Arc::clone(&encoder.jobs),
        });
        // The count leaves room in the mailbox, with one place for the word to stop.
        let sent = encoder.mail.send(ToEncoder::Squeeze(job));
        debug_assert!(sent.is_ok());
        Ok(())
    }

    /// Tells every thread to end when it has done what it has.
    pub fn stop(&self) {
        for encoder in self.threads.iter() {
            let _ = encoder.mail.send(ToEncoder::Stop);
        }
    }
}

/// Dedicated cores of workers are none of an encoder's.
fn stay_on(cores: &[usize]) {
    if cores.is_empty() {
        return;
    }
    let mut set = CpuSet::new();
    for core in cores.iter().filter(|core| **core < CpuSet::MAX_CPU) {
        set.set(*core);
    }
    if let Err(error) = sched_setaffinity(None, &set) {
        tracing::warn!(%error, ?cores, "an encoder may run on the cores of workers: the system refused others");
    }
}

fn run(mail: &Mailbox<ToEncoder>) {
    loop {
        match mail.receive() {
            Some(ToEncoder::Squeeze(job)) => job.run(),
            Some(ToEncoder::Stop) => return,
            None => {
                sleep(mail.fd());
                mail.drain_wakeups();
            }
        }
    }
}

fn sleep(fd: BorrowedFd<'_>) {
    // A wait that is interrupted is a look too many.
    let _ = poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], None);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_is_of_senders_for_each_thread_while_they_send() {
        for (threads, workers, crowds) in [(2, 4, [1.0, 1.0, 1.5]), (0, 1, [1.0, 2.0, 3.0])] {
            let (encoders, handles) = Encoders::start(threads, workers, &[]).unwrap();
            let mut sending = Vec::new();
            for crowd in crowds {
                sending.push(encoders.begin_sending());
                assert_eq!(encoders.crowd().to_bits(), f32::to_bits(crowd));
            }
            drop(sending);
            assert_eq!(encoders.crowd().to_bits(), 1.0_f32.to_bits());
            encoders.stop();
            handles
                .into_iter()
                .for_each(|handle| handle.join().unwrap());
        }
    }
}
