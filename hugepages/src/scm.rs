//! File descriptors over a UNIX socket that keeps message boundaries (`SOCK_SEQPACKET`).
//!
//! In: bytes and descriptors. Out: the same at the other end. It promises that a message arrives
//! whole with all its descriptors or not at all, that received descriptors are close-on-exec and
//! are closed on every error, and that the end of the connection is not mistaken for a message.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::cmsg_space;
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use thiserror::Error;

/// Descriptors that one message can carry. Far below the kernel's own limit of 253
/// (`SCM_MAX_FD`), so that the control buffer lies on the stack.
pub const FDS_MAX: usize = 64;

const CONTROL_BYTES: usize = cmsg_space!(ScmRights(FDS_MAX));

/// Why a message was not sent or not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ScmError {
    /// The peer closed its end.
    #[error("the peer closed the socket")]
    Eof,
    /// Nothing to read, or no room to write, on a non-blocking socket.
    #[error("the socket is not ready; wait until it is and call again")]
    WouldBlock,
    /// An empty message would look like the end of the connection.
    #[error("a message needs at least one byte beside its descriptors")]
    EmptyMessage,
    /// More descriptors than allowed.
    #[error("{found} descriptors in one message, at most {max} are allowed; split the message")]
    TooManyFds {
        /// How many there are.
        found: usize,
        /// How many there may be.
        max: usize,
    },
    /// The message is longer than the buffer; it is gone.
    #[error("the message is longer than the buffer of {buf_bytes} bytes: not of our protocol")]
    MessageTruncated {
        /// Length of the buffer.
        buf_bytes: usize,
    },
    /// Descriptors were lost: too many, or no free slot in this process.
    #[error(
        "descriptors were lost on the way: more than {max} sent, or the descriptor limit of \
             this process is reached (raise RLIMIT_NOFILE)"
    )]
    FdsTruncated {
        /// How many were allowed.
        max: usize,
    },
    /// Part of the message was not taken. Only a socket of the wrong type does that.
    #[error("{sent} of {bytes} bytes were taken; use a SOCK_SEQPACKET socket")]
    PartialSend {
        /// Bytes taken.
        sent: usize,
        /// Bytes given.
        bytes: usize,
    },
    /// Any other failure of the socket.
    #[error("the socket failed: {0}")]
    Os(Errno),
}

impl From<Errno> for ScmError {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::AGAIN => Self::WouldBlock,
            // The peer is gone; on this kind of socket that is how a writer learns it.
            Errno::PIPE | Errno::CONNRESET => Self::Eof,
            errno => Self::Os(errno),
        }
    }
}

/// Sends one message with descriptors. The caller keeps its own copies.
///
/// # Errors
/// See [`ScmError`]; nothing was sent.
pub fn send_with_fds(
    socket: impl AsFd,
    message: &[u8],
    fds: &[BorrowedFd<'_>],
) -> Result<(), ScmError> {
    if message.is_empty() {
        return Err(ScmError::EmptyMessage);
    }
    if fds.len() > FDS_MAX {
        return Err(ScmError::TooManyFds {
            found: fds.len(),
            max: FDS_MAX,
        });
    }
    let mut space = [MaybeUninit::uninit(); CONTROL_BYTES];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(ScmError::TooManyFds {
            found: fds.len(),
            max: FDS_MAX,
        });
    }
    let parts = [IoSlice::new(message)];
    let sent = retry_on_intr(|| sendmsg(&socket, &parts, &mut control, SendFlags::NOSIGNAL))?;
    if sent != message.len() {
        return Err(ScmError::PartialSend {
            sent,
            bytes: message.len(),
        });
    }
    Ok(())
}

/// Receives one message into `buf`, with at most `fds_max` descriptors (itself at most
/// [`FDS_MAX`]). Returns the length of the message and its descriptors.
///
/// # Errors
/// See [`ScmError`]; descriptors that came with a refused message are closed.
pub fn recv_with_fds(
    socket: impl AsFd,
    buf: &mut [u8],
    fds_max: usize,
) -> Result<(usize, Vec<OwnedFd>), ScmError> {
    if fds_max > FDS_MAX {
        return Err(ScmError::TooManyFds {
            found: fds_max,
            max: FDS_MAX,
        });
    }
    let buf_bytes = buf.len();
    let mut space = [MaybeUninit::uninit(); CONTROL_BYTES];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = retry_on_intr(|| {
        let mut parts = [IoSliceMut::new(buf)];
        recvmsg(&socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    // Take ownership first: whatever is refused below is then closed.
    let fds: Vec<OwnedFd> = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(ScmError::FdsTruncated { max: fds_max });
    }
    if fds.len() > fds_max {
        return Err(ScmError::TooManyFds {
            found: fds.len(),
            max: fds_max,
        });
    }
    if received.flags.contains(ReturnFlags::TRUNC) {
        return Err(ScmError::MessageTruncated { buf_bytes });
    }
    if received.bytes == 0 {
        return Err(if buf_bytes == 0 {
            ScmError::EmptyMessage
        } else {
            ScmError::Eof
        });
    }
    Ok((received.bytes, fds))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use rustix::io::{FdFlags, fcntl_getfd};
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    fn pair() -> (OwnedFd, OwnedFd) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
    }

    #[test]
    fn a_message_arrives_with_its_descriptors() {
        let (left, right) = pair();
        let (read_end, write_end) = rustix::pipe::pipe().unwrap();
        send_with_fds(&left, b"two ends", &[read_end.as_fd(), write_end.as_fd()]).unwrap();
        send_with_fds(&left, b"none", &[]).unwrap();
        let mut buf = [0; 64];
        let (length, fds) = recv_with_fds(&right, &mut buf, 2).unwrap();
        assert_eq!((&buf[..length], fds.len()), (&b"two ends"[..], 2));
        assert!(
            fds.iter()
                .all(|fd| fcntl_getfd(fd).unwrap().contains(FdFlags::CLOEXEC))
        );
        // They are the pipe: what goes in at one comes out at the other.
        rustix::io::write(&fds[1], b"x").unwrap();
        let mut byte = [0];
        assert_eq!(rustix::io::read(&read_end, &mut byte), Ok(1));
        let (length, fds) = recv_with_fds(&right, &mut buf, 0).unwrap();
        assert_eq!((&buf[..length], fds.len()), (&b"none"[..], 0));
    }

    #[test]
    fn more_descriptors_than_allowed_are_refused_and_closed() {
        let (left, right) = pair();
        for allowed in [0, 1, 2] {
            let (read_end, write_end) = rustix::pipe::pipe().unwrap();
            let ends = [write_end.as_fd(), write_end.as_fd(), write_end.as_fd()];
            send_with_fds(&left, b"m", &ends).unwrap();
            let refused = recv_with_fds(&right, &mut [0; 8], allowed);
            assert_eq!(
                refused.unwrap_err(),
                ScmError::TooManyFds {
                    found: 3,
                    max: allowed
                }
            );
            drop(write_end);
            // End of file only if no copy of the write end survived.
            assert_eq!(rustix::io::read(&read_end, &mut [0; 1][..]), Ok(0));
        }
    }

    #[test]
    fn end_emptiness_and_truncation_are_told_apart() {
        let (left, right) = pair();
        assert_eq!(
            recv_with_fds(&right, &mut [0; 8], 0).unwrap_err(),
            ScmError::WouldBlock
        );
        assert_eq!(send_with_fds(&left, b"", &[]), Err(ScmError::EmptyMessage));
        send_with_fds(&left, b"too long", &[]).unwrap();
        let refused = recv_with_fds(&right, &mut [0; 4], 0);
        assert_eq!(
            refused.unwrap_err(),
            ScmError::MessageTruncated { buf_bytes: 4 }
        );
        drop(left);
        assert_eq!(
            recv_with_fds(&right, &mut [0; 8], 0).unwrap_err(),
            ScmError::Eof
        );
        assert_eq!(send_with_fds(&right, b"m", &[]), Err(ScmError::Eof));
    }

    #[test]
    fn more_descriptors_than_a_message_holds_are_not_sent() {
        let (left, _right) = pair();
        let many = vec![left.as_fd(); FDS_MAX + 1];
        let refused = send_with_fds(&left, b"m", &many);
        assert_eq!(
            refused,
            Err(ScmError::TooManyFds {
                found: FDS_MAX + 1,
                max: FDS_MAX
            })
        );
    }
}
