//! A TCP socket's settings for a lane, and what the kernel knows about its path.
//!
//! Comes in: a socket. Goes out: the socket set up, or [`LaneStats`]. Promises: every setting that
//! the kernel refuses is an error that names it.

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use thiserror::Error;

use crate::lane::LaneStats;

/// How a lane's socket is set up. The default suits a fast local link: Nagle off, little unsent
/// data in the kernel, buffers and congestion control as the host has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketTuning {
    /// Send buffer; none leaves it to the kernel, which adapts it to the path.
    pub send_buf_bytes: Option<u32>,
    /// Receive buffer; none leaves it to the kernel, which adapts it to the path.
    pub recv_buf_bytes: Option<u32>,
    /// Above this many unsent bytes the kernel takes no more: what waits there is downtime, and
    /// nobody counts it. Bytes on the way are not limited by it.
    pub unsent_bytes_max: u32,
    /// Congestion control by name; none leaves the host's default.
    pub congestion: Option<String>,
    /// Upper limit of the sending rate; none for no limit.
    pub pacing_max_bytes_per_s: Option<u64>,
}

impl Default for SocketTuning {
    fn default() -> Self {
        Self {
            send_buf_bytes: None,
            recv_buf_bytes: None,
            unsent_bytes_max: 256 << 10,
            congestion: None,
            pacing_max_bytes_per_s: None,
        }
    }
}

/// A setting that the kernel did not take.
#[derive(Debug, Error)]
#[error("the kernel refused {option} = {value}: {cause}")]
pub struct TuneError {
    /// The socket option.
    pub option: &'static str,
    /// What it was to be.
    pub value: String,
    /// The kernel's answer.
    pub cause: io::Error,
}

/// Sets a socket up for a lane: best before it is connected, for the buffers decide the window
/// scale.
///
/// # Errors
/// The first setting that was refused; those before it stay.
pub fn tune(socket: impl AsFd, tuning: &SocketTuning) -> Result<(), TuneError> {
    let fd = socket.as_fd();
    let tcp = libc::IPPROTO_TCP;
    let sock = libc::SOL_SOCKET;
    set(fd, "TCP_NODELAY", tcp, libc::TCP_NODELAY, 1u32)?;
    set(
        fd,
        "TCP_NOTSENT_LOWAT",
        tcp,
        libc::TCP_NOTSENT_LOWAT,
        tuning.unsent_bytes_max,
    )?;
    if let Some(bytes) = tuning.send_buf_bytes {
        set(fd, "SO_SNDBUF", sock, libc::SO_SNDBUF, bytes)?;
    }
    if let Some(bytes) = tuning.recv_buf_bytes {
        set(fd, "SO_RCVBUF", sock, libc::SO_RCVBUF, bytes)?;
    }
    if let Some(rate) = tuning.pacing_max_bytes_per_s {
        pace(fd, rate)?;
    }
    if let Some(name) = &tuning.congestion {
        set_congestion(fd, name)?;
    }
    Ok(())
}

/// Spreads what a socket sends over time, at no more than so many bytes a second; 0 lifts that. The kernel
/// does it by itself, without a queueing discipline that knows of it.
///
/// # Errors
/// The setting that was refused.
pub fn pace(socket: impl AsFd, bytes_per_s: u64) -> Result<(), TuneError> {
    let rate = if bytes_per_s == 0 {
        u64::MAX
    } else {
        bytes_per_s
    };
    let (level, name) = (libc::SOL_SOCKET, libc::SO_MAX_PACING_RATE);
    set(socket.as_fd(), "SO_MAX_PACING_RATE", level, name, rate)
}

/// Has a socket, connected or not, controlled by `name` from now on.
///
/// # Errors
/// When this kernel has no such congestion control, or this user may not choose it.
pub fn set_congestion(socket: impl AsFd, name: &str) -> Result<(), TuneError> {
    rustix::net::sockopt::set_tcp_congestion(socket, name).map_err(|cause| TuneError {
        option: "TCP_CONGESTION",
        value: name.to_owned(),
        cause: cause.into(),
    })
}

/// Has the congestion control of a connected socket forget what it learnt. The kernel begins one anew when it
/// takes the place of another.
///
/// # Errors
/// The setting that was refused, or that the socket cannot be asked: as a rule because this is not a TCP socket.
pub fn learn_anew(socket: impl AsFd) -> Result<(), TuneError> {
    let stats = stats(&socket).map_err(|cause| TuneError {
        option: "TCP_INFO",
        value: "read".to_owned(),
        cause,
    })?;
    let name = stats.congestion_name();
    // Every kernel has this one, and everybody may use it.
    set_congestion(&socket, if name == "reno" { "cubic" } else { "reno" })?;
    set_congestion(&socket, name)
}

fn set<T: Copy + std::fmt::Display>(
    fd: BorrowedFd<'_>,
    option: &'static str,
    level: libc::c_int,
    name: libc::c_int,
    value: T,
) -> Result<(), TuneError> {
    set_raw(fd, level, name, &value).map_err(|cause| TuneError {
        option,
        value: value.to_string(),
        cause,
    })
}

fn set_raw<T: Copy>(
    fd: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: &T,
) -> io::Result<()> {
    // SAFETY: needed because rustix lacks some options. The pointer and the length describe
    // `value`, which outlives the call; the kernel only reads it.
    let answer = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    if answer == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// A close of `fd` from now on resets the connection and frees what the kernel still holds.
pub(super) fn abort_on_close(fd: BorrowedFd<'_>) -> io::Result<()> {
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    set_raw(fd, libc::SOL_SOCKET, libc::SO_LINGER, &linger)
}

/// From now on the kernel calls `fd` readable when it has this many bytes, or its end, an error, or
/// no memory for more. It also makes room for them, within the host's limit.
pub(super) fn readable_at(fd: BorrowedFd<'_>, bytes: usize) -> io::Result<()> {
    let bytes = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    set_raw(fd, libc::SOL_SOCKET, libc::SO_RCVLOWAT, &bytes)
}

/// A path of at least this round trip is a far one.
const FAR_RTT_US: u32 = 5_000;
/// What the kernel takes ahead on such a path: a round trip's worth while the connection begins, in which its
/// window doubles with each. With less the kernel runs dry between two looks of a busy worker and takes the
/// path for a slower one.
const FAR_UNSENT_BYTES: u32 = 1 << 20;

/// What it makes room for at the receiving end of such a path. By itself it would begin with the room for one
/// short frame and find out slowly that more is to come, and the sender would wait for it.
const FAR_RECV_BYTES: usize = 1 << 20;

/// Lets the kernel take more ahead where the path is a far one, in both directions. What lies there is bounded
/// by whoever counts the bytes on the way. Answers whether it is one.
///
/// # Errors
/// What the kernel refused, as a rule because this is not a TCP socket.
pub fn deepen_if_far(fd: BorrowedFd<'_>) -> io::Result<bool> {
    if stats(fd)?.rtt_min_us < FAR_RTT_US {
        return Ok(false);
    }
    let tcp = libc::IPPROTO_TCP;
    set_raw(fd, tcp, libc::TCP_NOTSENT_LOWAT, &FAR_UNSENT_BYTES)?;
    // The room stays when less is waited for again, unlike a fixed buffer, which would not grow either.
    readable_at(fd, FAR_RECV_BYTES)?;
    readable_at(fd, 1)?;
    Ok(true)
}

/// Where `tcpi_delivery_rate_app_limited` lies, as bit 0 (`linux/tcp.h`).
const APP_LIMITED_AT: usize = 7;
const _: () = assert!(APP_LIMITED_AT < std::mem::offset_of!(libc::tcp_info, tcpi_rto));

/// What the kernel knows about the path of a connected TCP socket.
///
/// # Errors
/// The kernel's, as a rule because this is not a TCP socket.
pub fn stats(socket: impl AsFd) -> io::Result<LaneStats> {
    let fd = socket.as_fd();
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut len = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: needed because rustix has no TCP_INFO. The kernel writes at most `len` bytes into
    // `info`, which is that long and outlives the call.
    let answer = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if answer != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: needed because the field has no name in `libc`, which sees padding there. The byte lies within
    // `info`, every byte of which was zeroed and which the kernel may have written.
    let flags = unsafe { info.as_ptr().cast::<u8>().add(APP_LIMITED_AT).read() };
    // SAFETY: needed to read what the kernel wrote. All fields are integers, and those that an older
    // kernel does not know stay zero.
    let info = unsafe { info.assume_init() };
    let mut congestion = [0u8; 16];
    let mut len = congestion.len() as libc::socklen_t;
    // SAFETY: needed to read the name without an allocation. The kernel writes at most `len` bytes
    // into `congestion`, which is that long and outlives the call.
    let answer = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_CONGESTION,
            congestion.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if answer != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(LaneStats {
        rtt_us: info.tcpi_rtt,
        rtt_min_us: info.tcpi_min_rtt,
        retransmits: info.tcpi_total_retrans,
        delivery_rate_bytes_per_s: info.tcpi_delivery_rate,
        is_app_limited: flags & 1 != 0,
        acked_bytes: info.tcpi_bytes_acked,
        unsent_bytes: info.tcpi_notsent_bytes,
        unacked_segments: info.tcpi_unacked,
        cwnd_segments: info.tcpi_snd_cwnd,
        mss_bytes: info.tcpi_snd_mss,
        congestion,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (near, listener.accept().unwrap().0)
    }

    #[test]
    fn settings_are_what_the_kernel_says_afterwards() {
        let (near, _far) = pair();
        let tuning = SocketTuning {
            send_buf_bytes: Some(200_000),
            congestion: Some("reno".into()),
            ..SocketTuning::default()
        };
        tune(&near, &tuning).unwrap();
        assert!(near.nodelay().unwrap());
        assert_eq!(stats(&near).unwrap().congestion_name(), "reno");
        // The kernel doubles what it is given, for its own bookkeeping.
        assert_eq!(
            rustix::net::sockopt::socket_send_buffer_size(&near).unwrap(),
            400_000
        );
    }

    #[test]
    fn an_unknown_congestion_control_is_named() {
        let (near, _far) = pair();
        let tuning = SocketTuning {
            congestion: Some("none-such".into()),
            ..Default::default()
        };
        let refused = tune(&near, &tuning).unwrap_err();
        assert_eq!(
            (refused.option, refused.value.as_str()),
            ("TCP_CONGESTION", "none-such")
        );
    }

    #[test]
    fn a_connected_socket_is_paced_and_controlled_anew() {
        use std::io::{Read, Write};
        let (mut near, mut far) = pair();
        set_congestion(&near, "reno").unwrap();
        assert_eq!(stats(&near).unwrap().congestion_name(), "reno");
        learn_anew(&near).unwrap();
        assert_eq!(stats(&near).unwrap().congestion_name(), "reno");
        assert!(learn_anew(std::io::stdin()).is_err());
        pace(&near, 6_000_000).unwrap();
        let sent = std::time::Instant::now();
        let sender = std::thread::spawn(move || {
            near.write_all(&vec![7; 3_000_000]).unwrap();
            near
        });
        far.read_exact(&mut vec![0; 3_000_000]).unwrap();
        assert!(sent.elapsed().as_millis() > 150, "{:?}", sent.elapsed());
        pace(sender.join().unwrap(), 0).unwrap();
    }

    #[test]
    fn stats_follow_the_traffic() {
        use std::io::{Read, Write};
        let (mut near, mut far) = pair();
        let before = stats(&near).unwrap().acked_bytes;
        near.write_all(&[1; 10_000]).unwrap();
        far.read_exact(&mut [0; 10_000]).unwrap();
        far.write_all(&[1]).unwrap();
        near.read_exact(&mut [0]).unwrap();
        let after = stats(&near).unwrap();
        assert_eq!(after.acked_bytes - before, 10_000);
        assert!(after.is_app_limited, "there was nothing more to send");
        assert!(after.rtt_us > 0);
        assert!(stats(std::io::stdin()).is_err());
    }
}
