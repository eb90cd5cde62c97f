//! Batches that are squeezed beside the worker: given away, done, taken back.
//!
//! In: classified batches. Out: their frames, in whatever order they are done; their places in the sequence
//! were fixed before. Promises: a session has at most [`JOBS_MAX`] batches out, each with a strand of its own
//! that comes back with it; all their memory is taken when the session begins; nothing waits for a batch that
//! is out.

use std::sync::Arc;

use crossbeam::queue::ArrayQueue;
use dwcp_api::monotonic_ns;
use dwcp_drivers::frame::{Frame, FrameMut};

use super::link::{Kept, Link};
use super::{Fault, encoding};
use crate::codec::{
    Classified, CodecConfig, CodecError, CodecVersion, EncodeError, EncodeHint, EncodeStats,
    Encoded, Sections, Strand,
};
use crate::engine::encoders::{Encoders, Room, Sends};
use crate::engine::mailbox::Sender;
use crate::engine::messages::ToWorker;
use crate::intake::HEADROOM;
use crate::stream::Token;
use crate::transport::outbound::BatchMeta;
use crate::transport::wire::batch::{DataHeader, FLAG_HISTORY};
use crate::transport::{BatchSeq, Nanos};

/// Batches of a session that may be out at once. The worker squeezes one more.
pub const JOBS_MAX: usize = 3;

/// The way back to the worker.
struct Returns {
    done: ArrayQueue<Box<Job>>,
    worker: Sender<ToWorker>,
}

/// What is out of one batch.
struct Batch {
    seq: BatchSeq,
    header: DataHeader,
    classified: Classified,
    raw: FrameMut,
    raw_bytes: usize,
    out: FrameMut,
    tokens: Vec<Token>,
}

/// One batch and what it is squeezed with. Used again and again.
pub struct Job {
    sections: Sections,
    strand: Strand,
    batch: Option<Batch>,
    /// The way back, while it is out: a job that has come back must not keep the queue alive that it lies in.
    back: Option<Arc<Returns>>,
    squeezed: Option<Result<Encoded, EncodeError>>,
    /// Its room at the thread that has it.
    pub(crate) room: Option<Room>,
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seq = self.batch.as_ref().map(|batch| batch.seq);
        f.debug_struct("Job")
            .field("seq", &seq)
            .finish_non_exhaustive()
    }
}

impl Job {
    /// Squeezes the batch and goes back to the worker.
    pub fn run(mut self: Box<Self>) {
        self.squeeze();
        let Some(back) = self.back.take() else {
            return;
        };
        let room = self.room.take();
        // The queue has a place for every job of the session.
        let _ = back.done.push(self);
        drop(room);
        back.worker.ring();
    }
}

impl Job {
    fn squeeze(&mut self) {
        let Some(batch) = &mut self.batch else {
            return;
        };
        let raw = &batch.raw.payload_mut()[HEADROOM..HEADROOM + batch.raw_bytes];
        let out = &mut batch.out.payload_mut()[HEADROOM..];
        let classified = &batch.classified;
        self.squeezed = Some(
            self.strand
                .squeeze(classified, raw, &mut self.sections, out),
        );
    }
}

/// As many as `encoders` threads can be busy with, but none for the side that sends no guest.
pub(super) const fn jobs_of(is_source: bool, encoders: usize) -> usize {
    match (is_source, encoders) {
        (false, _) | (_, 0) => 0,
        (true, 1) => 2,
        (true, _) => JOBS_MAX,
    }
}

/// A session's jobs.
pub struct Jobs {
    #[expect(
        clippy::vec_box,
        reason = "a job goes from queue to queue, which must cost neither a copy nor an allocation"
    )]
    spare: Vec<Box<Job>>,
    returns: Arc<Returns>,
    count: usize,
    /// What is squeezed is a guest's.
    _sends: Option<Sends>,
}

/// A batch that came back.
pub struct Made {
    /// Its header as it was sealed.
    pub header: DataHeader,
    /// What the first half said of it.
    classified: Classified,
    /// What became of it.
    pub encoded: Encoded,
    /// Its raw bytes.
    pub raw_bytes: usize,
    /// Bytes of its frame.
    pub frame_bytes: usize,
}

impl Made {
    /// What it took of the cores that worked on it.
    pub const fn encode_ns(&self) -> u64 {
        self.classified.classify_ns + self.encoded.squeeze_ns
    }
}

impl Jobs {
    /// All that [`jobs_of`] says.
    ///
    /// # Errors
    /// [`CodecError`], when the memory is not there.
    pub fn new(
        is_source: bool,
        encoders: &Encoders,
        worker: &Sender<ToWorker>,
        codec: &CodecConfig,
    ) -> Result<Self, CodecError> {
        let count = jobs_of(is_source, encoders.count());
        let mut spare = Vec::with_capacity(count);
        for _ in 0..count {
            spare.push(Box::new(Job {
                sections: Sections::new(),
                strand: Strand::new(codec)?,
                batch: None,
                back: None,
                squeezed: None,
                room: None,
            }));
        }
        let returns = Arc::new(Returns {
            done: ArrayQueue::new(JOBS_MAX),
            worker: worker.clone(),
        });
        Ok(Self {
            spare,
            returns,
            count,
            _sends: is_source.then(|| encoders.begin_sending()),
        })
    }

    /// What they take.
    #[cfg(test)]
    pub(super) fn taken_bytes(&self) -> usize {
        let each = |job: &Job| job.sections.taken_bytes() + job.strand.taken_bytes();
        self.spare.iter().map(|job| each(job)).sum()
    }

    /// Batches that may be out at once.
    pub const fn count(&self) -> usize {
        self.count
    }
}

/// What became of a batch that was to be given away.
pub enum Given {
    /// It is out.
    Away,
    /// Nobody had room for it, or it was not worth the way: it was squeezed here.
    Made(Frame, EncodeStats),
}

/// A batch with what is known of it before it is encoded.
pub struct Fresh {
    /// Its header; method and history are yet to come.
    pub header: DataHeader,
    /// Its raw bytes, behind room for the header.
    pub raw: FrameMut,
    /// How many they are.
    pub raw_bytes: usize,
    /// What the queue must know.
    pub meta: BatchMeta,
}

/// Classifies a v3 batch here and has it squeezed elsewhere, if a job is spare and a thread has room.
///
/// # Errors
/// [`Fault`], of the codec or for want of buffers.
pub fn give_away(
    link: &mut Link,
    encoders: &Encoders,
    hint: &EncodeHint,
    fresh: Fresh,
) -> Result<Given, Fault> {
    let Fresh {
        mut header,
        mut raw,
        raw_bytes,
        meta,
    } = fresh;
    let Some(mut job) = link.jobs.spare.pop() else {
        let (frame, stats) = encoding::encode(link, hint, header, raw, raw_bytes)?;
        return Ok(Given::Made(frame, stats));
    };
    let bytes = &raw.payload_mut()[HEADROOM..HEADROOM + raw_bytes];
    let tokens = link.tokens.as_slice();
    let (version, sections) = (CodecVersion::V3, &mut job.sections);
    let classified = link
        .encoder
        .classify(version, hint, bytes, tokens, sections)?;
    header.flags |= if classified.history { FLAG_HISTORY } else { 0 };
    if classified.raw_as_is {
        link.jobs.spare.push(job);
        header.method = classified.choice.method.code();
        let frame = encoding::send_as_is(link, &header, raw, raw_bytes)?;
        return Ok(Given::Made(frame, classified.stats));
    }
    let batch = Batch {
        seq: header.seq,
        header,
        classified,
        raw,
        raw_bytes,
        out: encoding::take_output(link, raw_bytes)?,
        tokens: encoding::copy_tokens(link),
    };
    job.batch = Some(batch);
    if classified.choice.method.is_compressed() {
        job.back = Some(Arc::clone(&link.jobs.returns));
        match encoders.give(job) {
            Ok(()) => {
                link.outbound.reserve(meta, Nanos(monotonic_ns()))?;
                return Ok(Given::Away);
            }
            Err(refused) => {
                job = refused;
                job.back = None;
            }
        }
    }
    job.squeeze();
    let (frame, made) = finish(link, job)?.ok_or_else(Fault::buffers)?;
    link.encoder.learn(&classified, &made.encoded);
    Ok(Given::Made(frame, made.encoded.stats))
}

/// Queues the frame of a batch that has come back, if there is one.
///
/// # Errors
/// [`Fault`], of the codec, or of a peer that confirmed what it cannot have.
pub fn take_back(link: &mut Link) -> Result<Option<Made>, Fault> {
    let Some(job) = link.jobs.returns.done.pop() else {
        return Ok(None);
    };
    let Some((frame, made)) = finish(link, job)? else {
        return Ok(None);
    };
    link.encoder.learn(&made.classified, &made.encoded);
    link.outbound.fill(made.header.seq, frame)?;
    Ok(Some(made))
}

/// Seals what a job made, keeps what a rollback would need, and has the job to spare again.
fn finish(link: &mut Link, mut job: Box<Job>) -> Result<Option<(Frame, Made)>, Fault> {
    let (batch, squeezed) = (job.batch.take(), job.squeezed.take());
    link.jobs.spare.push(job);
    let Some((batch, squeezed)) = batch.zip(squeezed) else {
        return Ok(None);
    };
    let encoded = squeezed?;
    let Batch {
        mut header,
        classified,
        raw,
        raw_bytes,
        out,
        tokens,
        ..
    } = batch;
    header.method = encoded.method;
    let frame = encoding::seal(link, header, &encoded, out)?;
    let kept = Kept {
        frame: raw.freeze(HEADROOM + raw_bytes)?,
        sealed: false,
    };
    let stats = &encoded.stats;
    encoding::retain(link, &header, kept, (raw_bytes, stats), tokens);
    let frame_bytes = frame.bytes().len();
    let made = Made {
        header,
        classified,
        encoded,
        raw_bytes,
        frame_bytes,
    };
    Ok(Some((frame, made)))
}

#[cfg(test)]
mod tests;
