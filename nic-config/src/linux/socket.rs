//! A netlink socket: one request, all its answers.
//!
//! In: a message type and a body. Out: the bodies of the answers. Promise: only answers of the kernel
//! to this very request count; a refusal comes with the kernel's own words where it has any; a listing
//! that changed while it was read is read again.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR,
    NetlinkBuffer,
};
use netlink_sys::{Socket as RawSocket, SocketAddr};

use super::attributes::Reader;
use crate::kernel::KernelError;

/// Length of a message's header in bytes.
const HEADER_BYTES: usize = 16;
/// Where the attributes of an error message begin: after its code and the header of the request.
const ERROR_ATTRIBUTES: usize = 4 + HEADER_BYTES;
/// Attribute of an error message that holds the kernel's words.
const ERROR_WORDS: u16 = 1;
/// How often a listing that changes under the reader is read again.
const ATTEMPTS_MAX: u32 = 8;

/// A socket to one part of the kernel.
pub struct Socket {
    inner: RawSocket,
    sequence: u32,
}

/// Answers of the kernel, or why there are none.
enum Answers {
    All(Vec<Vec<u8>>),
    /// The listing changed meanwhile.
    Interrupted,
}

/// A refusal and the kernel's words for it.
struct Refusal(io::Error, Option<String>);

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self(error, None)
    }
}

impl Socket {
    /// Opens one for a protocol of [`netlink_sys::protocols`].
    pub fn open(protocol: isize) -> Result<Self, KernelError> {
        let open = || {
            let mut inner = RawSocket::new(protocol)?;
            inner.bind_auto()?;
            // Connected to the kernel: what other processes send does not arrive.
            inner.connect(&SocketAddr::new(0, 0))?;
            inner.set_ext_ack(true)?;
            inner.set_cap_ack(true)?;
            Ok(inner)
        };
        let inner = open().map_err(|source| KernelError::Netlink {
            what: "open a netlink socket".to_owned(),
            source,
            said: None,
        })?;
        Ok(Self { inner, sequence: 0 })
    }

    /// Sends a request and waits for all answers. `flags` are added to those of every request; `what`
    /// completes "cannot …" in an error.
    pub fn ask(
        &mut self,
        what: &str,
        kind: u16,
        flags: u16,
        body: &[u8],
    ) -> Result<Vec<Vec<u8>>, KernelError> {
        let refused = |Refusal(source, said)| KernelError::Netlink {
            what: what.to_owned(),
            source,
            said,
        };
        for _ in 0..ATTEMPTS_MAX {
            self.send(kind, flags, body)
                .map_err(|error| refused(error.into()))?;
            match self.receive().map_err(refused)? {
                Answers::All(bodies) => return Ok(bodies),
                Answers::Interrupted => {}
            }
        }
        let busy = io::Error::new(
            io::ErrorKind::ResourceBusy,
            "the network's configuration keeps changing while it is read; try again later",
        );
        Err(refused(busy.into()))
    }

    fn send(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        self.sequence += 1;
        let length = HEADER_BYTES + body.len();
        let mut bytes = vec![0; length];
        let mut message = NetlinkBuffer::new(&mut bytes);
        message.set_length(u32::try_from(length).map_err(io::Error::other)?);
        message.set_message_type(kind);
        message.set_flags(NLM_F_REQUEST | NLM_F_ACK | flags);
        message.set_sequence_number(self.sequence);
        message.payload_mut().copy_from_slice(body);
        self.inner.send(&bytes, 0).map(drop)
    }

    fn receive(&self) -> Result<Answers, Refusal> {
        let mut bodies = Vec::new();
        let mut interrupted = false;
        loop {
            let (datagram, _) = self.inner.recv_from_full()?;
            let mut rest = &datagram[..];
            while !rest.is_empty() {
                let message = NetlinkBuffer::new_checked(rest).map_err(io::Error::other)?;
                // Checked above to lie within `rest`; padded to four bytes except at the end.
                let length = usize::try_from(message.length()).map_err(io::Error::other)?;
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
                if message.sequence_number() != self.sequence {
                    continue;
                }
                interrupted |= message.flags() & NLM_F_DUMP_INTR != 0;
                let body = message.payload();
                match message.message_type() {
                    NLMSG_ERROR | NLMSG_DONE => {
                        let code = body
                            .first_chunk()
                            .map_or(0, |code| i32::from_ne_bytes(*code));
                        if code != 0 {
                            let said = (message.flags() & NLM_F_ACK_TLVS != 0)
                                .then(|| Reader::after(body, ERROR_ATTRIBUTES).text(ERROR_WORDS))
                                .flatten();
                            let error = io::Error::from_raw_os_error(code.saturating_neg());
                            return Err(Refusal(error, said));
                        }
                        return Ok(if interrupted {
                            Answers::Interrupted
                        } else {
                            Answers::All(bodies)
                        });
                    }
                    _ => bodies.push(body.to_vec()),
                }
            }
        }
    }
}
