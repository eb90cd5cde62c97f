//! One queue pair, its completion queue, and the message slots it works on.
//!
//! Comes in: work requests. Goes out: [`Completion`]s. Promises: every slot to receive into is posted
//! when the connection is made, so that a peer never finds the receive queue empty; requests of one
//! post go to the device in one call, and only the last of them reports its completion, and one in
//! every so many bytes, which stands for all before it; after the drop the device touches no memory of this lane.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;

use dwcp_hugepages::arena::BackingPolicy;
use rdma_sys::{
    ibv_ack_cq_events, ibv_comp_channel, ibv_cq, ibv_create_comp_channel, ibv_create_cq,
    ibv_destroy_comp_channel, ibv_destroy_cq, ibv_get_cq_event, ibv_poll_cq, ibv_post_recv,
    ibv_post_send, ibv_qp, ibv_qp_init_attr, ibv_qp_type, ibv_recv_wr, ibv_req_notify_cq,
    ibv_send_flags, ibv_send_wr, ibv_sge, ibv_wc, ibv_wc_opcode, ibv_wc_status, ibv_wr_opcode,
    rdma_create_qp, rdma_destroy_qp, rdma_disconnect,
};

use super::cm::{Event, Id, check};
use super::device::{Device, non_null};
use super::memory::{SLOTS, Slots, SlotsError};
use super::message::{Buffer, MESSAGE_BYTES};

/// Long frames that a lane writes at a time, at most.
pub(super) const WRITES_MAX: usize = 16;
/// Requests that one post hands over, at most.
const POST_MAX: usize = 32;
/// Completions taken at once.
const REAP_MAX: usize = 32;
/// Sent bytes without a report, at most, so that long frames are given back while others are sent.
const SILENT_BYTES_MAX: usize = 128 << 10;
/// Marks requests to receive; the rest is the slot.
const RECV: u64 = 1 << 63;

/// What the device did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Completion {
    /// This request to send and all before it.
    Sent { seq: u64 },
    /// A message of `bytes` bytes lies in this slot.
    Message { slot: u8, bytes: usize },
    /// The peer wrote `bytes` bytes into the buffer that it says with `number`; the slot is free.
    Written { slot: u8, bytes: usize, number: u32 },
    /// The queue pair is broken.
    Broken { errno: i32 },
}

/// A made step that failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum MakeError {
    #[error(transparent)]
    Slots(#[from] SlotsError),
    #[error("{0}: {1}")]
    Verb(&'static str, io::Error),
}

/// A completion queue and the channel that wakes who waits for it.
struct Completions {
    cq: NonNull<ibv_cq>,
    channel: NonNull<ibv_comp_channel>,
}

impl Completions {
    fn new(device: &Device) -> Result<Self, MakeError> {
        let step = |what| move |cause| MakeError::Verb(what, cause);
        // Every request may have one.
        let entries = (2 * SLOTS + WRITES_MAX) as libc::c_int;
        // SAFETY: needed to make both; the device is open, and each is a pointer or null.
        let channel = non_null(unsafe { ibv_create_comp_channel(device.context()) })
            .map_err(step("create a completion channel (raise RLIMIT_NOFILE)"))?;
        // SAFETY: as above; the channel is the device's.
        let cq =
            unsafe { ibv_create_cq(device.context(), entries, null_mut(), channel.as_ptr(), 0) };
        match non_null(cq) {
            Ok(cq) => Ok(Self { cq, channel }),
            Err(cause) => {
                // SAFETY: needed to give it back; nothing uses it.
                unsafe { ibv_destroy_comp_channel(channel.as_ptr()) };
                Err(MakeError::Verb("create a completion queue", cause))
            }
        }
    }
}

impl Drop for Completions {
    fn drop(&mut self) {
        // SAFETY: needed to give both back; the queue pair went before, and events are given back as
        // they are taken, so that this does not wait for one.
        unsafe {
            ibv_destroy_cq(self.cq.as_ptr());
            ibv_destroy_comp_channel(self.channel.as_ptr());
        }
    }
}

/// See the module.
pub(super) struct QueuePair {
    id: Id,
    qp: NonNull<ibv_qp>,
    completions: Completions,
    slots: Slots,
    device: Arc<Device>,
    /// Number of the next request to send.
    seq: u64,
    /// Bytes pushed since a request that reports.
    silent_bytes: usize,
    sends: Vec<ibv_send_wr>,
    pieces: Vec<ibv_sge>,
    recvs: Vec<ibv_recv_wr>,
    recv_pieces: Vec<ibv_sge>,
    reaped: Vec<ibv_wc>,
}

// SAFETY: needed because of the raw pointers. All of them name things of this value alone, which one
// thread uses at a time; pointers between requests are set anew by each post.
unsafe impl Send for QueuePair {}

impl QueuePair {
    /// Makes one for an identifier that is bound to `device`, with every slot posted.
    pub(super) fn new(
        id: Id,
        device: &Arc<Device>,
        backing: BackingPolicy,
    ) -> Result<Self, MakeError> {
        let slots = Slots::new(device, backing)?;
        let completions = Completions::new(device)?;
        // SAFETY: needed to fill a C structure; zeros are values for all of its fields.
        let mut wanted: ibv_qp_init_attr = unsafe { std::mem::zeroed() };
        wanted.send_cq = completions.cq.as_ptr();
        wanted.recv_cq = completions.cq.as_ptr();
        wanted.qp_type = ibv_qp_type::IBV_QPT_RC;
        wanted.cap.max_send_wr = (SLOTS + WRITES_MAX) as u32;
        wanted.cap.max_recv_wr = SLOTS as u32;
        wanted.cap.max_send_sge = 1;
        wanted.cap.max_recv_sge = 1;
        // SAFETY: needed to make the queue pair; the identifier is bound to the device whose domain
        // and completion queue these are, and all of them outlive it, see the drop.
        check(unsafe { rdma_create_qp(id.as_ptr(), device.pd(), &raw mut wanted) })
            .map_err(|cause| MakeError::Verb("create a queue pair", cause))?;
        // SAFETY: needed to find it: rdma_cm notes it in the identifier.
        let qp = non_null(unsafe { (*id.as_ptr()).qp })
            .map_err(|cause| MakeError::Verb("create a queue pair", cause))?;
        let mut pair = Self {
            id,
            qp,
            completions,
            slots,
            device: Arc::clone(device),
            seq: 0,
            silent_bytes: 0,
            sends: Vec::with_capacity(POST_MAX),
            pieces: Vec::with_capacity(POST_MAX),
            recvs: Vec::with_capacity(SLOTS),
            recv_pieces: Vec::with_capacity(SLOTS),
            reaped: Vec::with_capacity(REAP_MAX),
        };
        // SAFETY: needed to be able to read the completion events without waiting for one; the
        // channel lives as long as `pair`.
        let channel = unsafe { pair.completions.channel.as_ref() };
        // SAFETY: needed to lend the descriptor for this call.
        let fd = unsafe { BorrowedFd::borrow_raw(channel.fd) };
        rustix::io::ioctl_fionbio(fd, true)
            .map_err(|cause| MakeError::Verb("set a completion channel up", cause.into()))?;
        for slot in 0..SLOTS as u8 {
            pair.want(slot);
        }
        pair.post_wanted()
            .map_err(|cause| MakeError::Verb("post receives", cause))?;
        Ok(pair)
    }

    pub(super) fn id(&self) -> &Id {
        &self.id
    }

    pub(super) fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// What arrived in a slot. `bytes` is at most what a slot holds.
    pub(super) fn message(&self, slot: u8, bytes: usize) -> &[u8] {
        let bytes = bytes.min(MESSAGE_BYTES);
        // SAFETY: needed to read what the device wrote. It reported the slot, so that it does not
        // touch it before it is posted again, for which `want` needs `self` alone.
        unsafe { std::slice::from_raw_parts(self.slots.incoming(slot), bytes) }
    }

    /// The slot to build a message in.
    pub(super) fn outgoing(&mut self, slot: usize) -> &mut [u8; MESSAGE_BYTES] {
        // SAFETY: needed to write the message. The slot has this many bytes; the caller's accounts say
        // that the device is done with it, and `&mut self` makes this the only reference.
        unsafe { &mut *self.slots.outgoing(slot).cast::<[u8; MESSAGE_BYTES]>() }
    }

    /// Notes that a slot is to receive again.
    pub(super) fn want(&mut self, slot: u8) {
        self.recv_pieces.push(ibv_sge {
            addr: self.slots.incoming(slot) as u64,
            length: MESSAGE_BYTES as u32,
            lkey: self.slots.lkey(),
        });
        self.recvs.push(ibv_recv_wr {
            wr_id: RECV | u64::from(slot),
            next: null_mut(),
            sg_list: null_mut(),
            num_sge: 1,
        });
    }

    /// Posts what was wanted, in one call. Returns how many.
    pub(super) fn post_wanted(&mut self) -> io::Result<usize> {
        let count = self.recvs.len();
        if count == 0 {
            return Ok(0);
        }
        let mut next = null_mut();
        for (request, piece) in self.recvs.iter_mut().zip(&mut self.recv_pieces).rev() {
            request.sg_list = &raw mut *piece;
            request.next = next;
            next = &raw mut *request;
        }
        let mut bad = null_mut();
        // SAFETY: needed to hand the requests over. They and their pieces lie in vectors that nobody
        // changes during the call, which copies them; each names a slot that nobody reads now.
        let refused = unsafe { ibv_post_recv(self.qp.as_ptr(), next, &raw mut bad) };
        self.recvs.clear();
        self.recv_pieces.clear();
        answer(refused).map(|()| count)
    }

    /// Whether a post has room for another request.
    pub(super) fn has_room(&self) -> bool {
        self.sends.len() < POST_MAX
    }

    /// Adds a message in a slot for sending. Returns its number.
    pub(super) fn push_message(&mut self, slot: usize, bytes: usize) -> u64 {
        let addr = self.slots.outgoing(slot) as u64;
        let lkey = self.slots.lkey();
        let request = self.request(ibv_wr_opcode::IBV_WR_SEND, addr, bytes, lkey);
        self.push(request)
    }

    /// Adds a frame to be written into the peer's buffer, under a number. Returns its own number.
    ///
    /// # Safety
    /// `payload` lies in memory whose key is `lkey`, and stays unchanged until the completion, or
    /// until this queue pair is dropped.
    pub(super) unsafe fn push_write(
        &mut self,
        payload: &[u8],
        lkey: u32,
        to: Buffer,
        number: u32,
    ) -> u64 {
        let opcode = ibv_wr_opcode::IBV_WR_RDMA_WRITE_WITH_IMM;
        let mut request = self.request(opcode, payload.as_ptr() as u64, payload.len(), lkey);
        request.imm_data_invalidated_rkey_union.imm_data = number.to_be();
        request.wr.rdma.remote_addr = to.addr;
        request.wr.rdma.rkey = to.rkey;
        self.push(request)
    }

    fn request(
        &mut self,
        opcode: ibv_wr_opcode::Type,
        addr: u64,
        bytes: usize,
        lkey: u32,
    ) -> ibv_send_wr {
        self.pieces.push(ibv_sge {
            addr,
            length: bytes as u32,
            lkey,
        });
        // SAFETY: needed to fill a C structure; zeros are values for all of its fields.
        let mut request: ibv_send_wr = unsafe { std::mem::zeroed() };
        request.opcode = opcode;
        request.num_sge = 1;
        self.silent_bytes += bytes;
        if self.silent_bytes >= SILENT_BYTES_MAX {
            self.silent_bytes = 0;
            request.send_flags = ibv_send_flags::IBV_SEND_SIGNALED.0;
        }
        request
    }

    fn push(&mut self, mut request: ibv_send_wr) -> u64 {
        let seq = self.seq;
        self.seq += 1;
        request.wr_id = seq;
        self.sends.push(request);
        seq
    }

    /// The last request of those that were pushed and not posted.
    pub(super) fn last_pushed(&self) -> Option<u64> {
        self.sends.last().map(|request| request.wr_id)
    }

    /// Posts what was pushed, in one call; the last request reports in any case. Returns how
    /// many.
    pub(super) fn post(&mut self) -> io::Result<usize> {
        let count = self.sends.len();
        let Some(last) = self.sends.last_mut() else {
            return Ok(0);
        };
        last.send_flags = ibv_send_flags::IBV_SEND_SIGNALED.0;
        self.silent_bytes = 0;
        let mut next = null_mut();
        for (request, piece) in self.sends.iter_mut().zip(&mut self.pieces).rev() {
            request.sg_list = &raw mut *piece;
            request.next = next;
            next = &raw mut *request;
        }
        let mut bad = null_mut();
        // SAFETY: needed to hand the requests over. They and their pieces lie in vectors that nobody
        // changes during the call, which copies them; the memory that they name is promised by
        // `push_write`, or is a slot that is not used again before the completion.
        let refused = unsafe { ibv_post_send(self.qp.as_ptr(), next, &raw mut bad) };
        self.sends.clear();
        self.pieces.clear();
        answer(refused).map(|()| count)
    }

    /// Takes completions and tells each. Returns how many there were.
    pub(super) fn reap(&mut self, mut tell: impl FnMut(&mut Self, Completion)) -> usize {
        let mut all = 0;
        loop {
            let mut reaped = std::mem::take(&mut self.reaped);
            // SAFETY: needed to take completions. The vector has room for as many as are asked for,
            // and the library says how many it wrote.
            let count = unsafe {
                let asked = reaped.capacity().min(REAP_MAX);
                let got = ibv_poll_cq(
                    self.completions.cq.as_ptr(),
                    asked as libc::c_int,
                    reaped.as_mut_ptr(),
                );
                let count = usize::try_from(got).unwrap_or(0).min(asked);
                reaped.set_len(count);
                if got < 0 {
                    tell(self, Completion::Broken { errno: libc::EIO });
                }
                count
            };
            for entry in &reaped {
                tell(self, completion(entry));
            }
            reaped.clear();
            self.reaped = reaped;
            all += count;
            if count < REAP_MAX {
                return all;
            }
        }
    }

    /// Moves it to its error state, as a device does that gives up.
    #[cfg(test)]
    pub(super) fn fail(&mut self) {
        use rdma_sys::{ibv_modify_qp, ibv_qp_attr, ibv_qp_attr_mask, ibv_qp_state};
        // SAFETY: needed to fill a C structure; zeros are values for all of its fields.
        let mut wanted: ibv_qp_attr = unsafe { std::mem::zeroed() };
        wanted.qp_state = ibv_qp_state::IBV_QPS_ERR;
        let mask = ibv_qp_attr_mask::IBV_QP_STATE.0.cast_signed();
        // SAFETY: needed to change the state; the queue pair lives, and the call copies what is wanted.
        let refused = unsafe { ibv_modify_qp(self.qp.as_ptr(), &raw mut wanted, mask) };
        assert_eq!(refused, 0);
    }

    /// Asks for an event at the next completion.
    pub(super) fn arm(&self) -> io::Result<()> {
        // SAFETY: needed to ask; the completion queue lives as long as `self`.
        answer(unsafe { ibv_req_notify_cq(self.completions.cq.as_ptr(), 0) })
    }

    /// Takes the events of completions, so that the descriptor is quiet. True if there was one.
    pub(super) fn take_events(&self) -> bool {
        let mut events = 0;
        let (mut cq, mut context) = (null_mut(), null_mut());
        // SAFETY: needed to take events; the channel lives, does not block, and the library writes
        // both pointers when it says 0.
        while unsafe {
            ibv_get_cq_event(
                self.completions.channel.as_ptr(),
                &raw mut cq,
                &raw mut context,
            )
        } == 0
        {
            events += 1;
        }
        if events > 0 {
            // SAFETY: needed to give them back; all were of this lane's only completion queue.
            unsafe { ibv_ack_cq_events(self.completions.cq.as_ptr(), events) };
        }
        events > 0
    }

    /// Readable when an event is there that [`QueuePair::arm`] asked for.
    pub(super) fn completion_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: needed to lend the descriptor; it is open as long as `self`.
        unsafe { BorrowedFd::borrow_raw(self.completions.channel.as_ref().fd) }
    }

    /// Readable when the connection has news.
    pub(super) fn connection_fd(&self) -> BorrowedFd<'_> {
        self.id.channel().as_fd()
    }

    /// The connection's next news.
    pub(super) fn event(&self) -> io::Result<Option<Event>> {
        self.id.channel().next()
    }
}

impl Drop for QueuePair {
    fn drop(&mut self) {
        // SAFETY: needed to end the connection and to make the device let go of all memory before
        // that is given back: the queue pair goes here, the fields after it. A refused disconnect
        // means that there is no connection.
        unsafe {
            rdma_disconnect(self.id.as_ptr());
            rdma_destroy_qp(self.id.as_ptr());
        }
    }
}

/// The answer of a verb that returns an errno.
fn answer(errno: libc::c_int) -> io::Result<()> {
    if errno == 0 {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(errno.abs()))
    }
}

fn completion(entry: &ibv_wc) -> Completion {
    if entry.status != ibv_wc_status::IBV_WC_SUCCESS {
        return Completion::Broken {
            errno: errno_of(entry.status),
        };
    }
    if entry.wr_id & RECV == 0 {
        return Completion::Sent { seq: entry.wr_id };
    }
    let slot = (entry.wr_id & 0xff) as u8;
    let bytes = entry.byte_len as usize;
    if entry.opcode == ibv_wc_opcode::IBV_WC_RECV_RDMA_WITH_IMM {
        // SAFETY: needed to read the union: a write with immediate data has it.
        let number = unsafe { entry.imm_data_invalidated_rkey_union.imm_data };
        Completion::Written {
            slot,
            bytes,
            number: u32::from_be(number),
        }
    } else {
        Completion::Message { slot, bytes }
    }
}

/// The nearest errno to what a device says of a failed request.
fn errno_of(status: ibv_wc_status::Type) -> i32 {
    match status {
        ibv_wc_status::IBV_WC_RETRY_EXC_ERR | ibv_wc_status::IBV_WC_RESP_TIMEOUT_ERR => {
            libc::ETIMEDOUT
        }
        ibv_wc_status::IBV_WC_WR_FLUSH_ERR => libc::ECONNRESET,
        ibv_wc_status::IBV_WC_RNR_RETRY_EXC_ERR => libc::ENOBUFS,
        ibv_wc_status::IBV_WC_REM_ACCESS_ERR
        | ibv_wc_status::IBV_WC_REM_INV_REQ_ERR
        | ibv_wc_status::IBV_WC_REM_OP_ERR
        | ibv_wc_status::IBV_WC_LOC_LEN_ERR => libc::EPROTO,
        _ => libc::EIO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(wr_id: u64, status: ibv_wc_status::Type, opcode: ibv_wc_opcode::Type) -> ibv_wc {
        // SAFETY: needed to fill a C structure; zeros are values for all of its fields.
        let mut entry: ibv_wc = unsafe { std::mem::zeroed() };
        entry.wr_id = wr_id;
        entry.status = status;
        entry.opcode = opcode;
        entry.byte_len = 70;
        entry.imm_data_invalidated_rkey_union.imm_data = 9u32.to_be();
        entry
    }

    #[test]
    fn completions_are_told_apart() {
        let good = ibv_wc_status::IBV_WC_SUCCESS;
        let (send, recv) = (ibv_wc_opcode::IBV_WC_SEND, ibv_wc_opcode::IBV_WC_RECV);
        let write = ibv_wc_opcode::IBV_WC_RECV_RDMA_WITH_IMM;
        assert_eq!(
            completion(&entry(5, good, send)),
            Completion::Sent { seq: 5 }
        );
        assert_eq!(
            completion(&entry(RECV | 63, good, recv)),
            Completion::Message {
                slot: 63,
                bytes: 70
            }
        );
        assert_eq!(
            completion(&entry(RECV | 7, good, write)),
            Completion::Written {
                slot: 7,
                bytes: 70,
                number: 9
            }
        );
        let flushed = ibv_wc_status::IBV_WC_WR_FLUSH_ERR;
        let silent = ibv_wc_status::IBV_WC_RETRY_EXC_ERR;
        for (status, errno) in [(flushed, libc::ECONNRESET), (silent, libc::ETIMEDOUT)] {
            assert_eq!(
                completion(&entry(RECV | 7, status, recv)),
                Completion::Broken { errno }
            );
        }
    }
}
