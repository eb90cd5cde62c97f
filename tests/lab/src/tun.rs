//! A TUN or TAP device on a host: packets as the host's kernel sends them, without or with their Ethernet
//! headers.
//!
//! In: packets written by us. Out: packets read by us. Each is preceded by a virtio-net header of
//! ten bytes (linux/virtio_net.h, `virtio_net_hdr`), which lets the kernel hand over a TCP segment
//! of up to 64 KiB with its checksum still to do: an order of magnitude fewer system calls.

use crate::link::Layer;
use crate::netns::{Host, NetnsError};
use rustix::fs::{Mode, OFlags};
use std::ffi::{c_int, c_short, c_ulong};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Bytes of the virtio-net header before each packet.
pub(crate) const HEADER_BYTES: usize = 10;
/// The longest packet with its header.
pub(crate) const MAX_PACKET_BYTES: usize = HEADER_BYTES + 65_535;

/// One end of a link.
pub(crate) struct Tun {
    fd: OwnedFd,
}

impl Tun {
    /// Makes the device on `host` and gives it its address.
    pub(crate) fn new(
        host: &Host,
        layer: Layer,
        device: &str,
        address: Ipv4Addr,
        mtu_bytes: u32,
    ) -> Result<Self, NetnsError> {
        let error = |source| NetnsError::Enter {
            name: host.name().to_owned(),
            source,
        };
        let fd = host.enter(|| open(layer, device))?.map_err(error)?;
        host.ip(&format!("addr add {address}/24 dev {device}"))?;
        host.ip(&format!(
            "link set {device} mtu {mtu_bytes} txqueuelen 2000 up"
        ))?;
        Ok(Self { fd })
    }

    /// Allows or forbids segments longer than the MTU.
    pub(crate) fn set_segmentation(&self, long: bool) -> io::Result<()> {
        let flags = if long {
            libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6
        } else {
            0
        };
        // SAFETY: needed because rustix has no TUN ioctls; sound because TUNSETOFFLOAD takes its
        // argument by value and the descriptor is open.
        let result = unsafe {
            libc::ioctl(
                self.fd.as_raw_fd(),
                libc::TUNSETOFFLOAD as _,
                flags as c_ulong,
            )
        };
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }

    /// Reads one packet with its header; `None` when there is none.
    pub(crate) fn read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match rustix::io::read(&self.fd, buffer) {
            Ok(length) => Ok(Some(length)),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Hands one packet to the host. A host that cannot take it drops it, as a network card would.
    pub(crate) fn write(&self, packet: &[u8]) {
        let _ = rustix::io::write(&self.fd, packet);
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn open(layer: Layer, device: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = rustix::fs::open("/dev/net/tun", flags, Mode::empty())?;
    // linux/if.h, struct ifreq: 16 bytes of name, then the flags; 40 bytes in all.
    #[repr(C)]
    struct Request {
        name: [u8; 16],
        flags: c_short,
        rest: [u8; 22],
    }
    let kind = match layer {
        Layer::Ip => libc::IFF_TUN,
        Layer::Ethernet => libc::IFF_TAP,
    };
    let mut request = Request {
        name: [0; 16],
        flags: (kind | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as c_short,
        rest: [0; 22],
    };
    if device.len() > 15 {
        return Err(io::Error::other("a device name has at most 15 bytes"));
    }
    request.name[..device.len()].copy_from_slice(device.as_bytes());
    // SAFETY: needed because rustix has no TUN ioctls; sound because TUNSETIFF reads and writes
    // one `struct ifreq`, whose size and layout `Request` has, and the reference is exclusive.
    let result: c_int =
        unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(fd)
    }
}
