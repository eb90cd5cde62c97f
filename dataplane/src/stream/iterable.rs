//! Device sections that may come before RAM END and can be walked.
//!
//! In: the payload of a `dirty-bitmap`, `vfio` or early virtio-mem section; out: raw bytes and the
//! place where the section ends.
//! Promises: only field lengths are read; what does not fit the known layout ends the parse.

use super::{
    LostSync,
    reader::{Reader, Step, Walk},
};

const BITMAP_EOS: u8 = 0x01;
const BITMAP_ZEROES: u8 = 0x02;
const BITMAP_NAME: u8 = 0x04;
const BITMAP_NODE: u8 = 0x08;
const BITMAP_START: u8 = 0x10;
const BITMAP_COMPLETE: u8 = 0x20;
const BITMAP_BITS: u8 = 0x40;

/// One chunk of a `dirty-bitmap` section: flags, the names that the flags announce, and a body by
/// kind of chunk.
pub(super) fn dirty_bitmap(head: &[u8]) -> Option<Walk> {
    let mut r = Reader::new(head);
    let flags = r.u8()?;
    if flags == BITMAP_EOS {
        return Some(Walk::End { head: r.pos() });
    }
    if flags & BITMAP_NODE != 0 {
        r.counted()?;
    }
    if flags & BITMAP_NAME != 0 {
        r.counted()?;
    }
    let mut skip = 0;
    match flags & !(BITMAP_NODE | BITMAP_NAME) {
        BITMAP_START => {
            r.be32()?; // granularity
            r.u8()?; // flags of the bitmap
        }
        BITMAP_COMPLETE => {}
        BITMAP_BITS => {
            r.be64()?; // first sector
            r.be32()?; // sectors
            skip = r.be64()?;
        }
        kind if kind == BITMAP_BITS | BITMAP_ZEROES => {
            r.be64()?;
            r.be32()?;
        }
        _ => return Some(LostSync::DeviceSection.into()),
    }
    Some(Walk::Step(Step::Raw {
        head: r.pos(),
        skip,
    }))
}

const VFIO_END_OF_STATE: u64 = 0xffff_ffff_ef10_0001;
const VFIO_SETUP_STATE: u64 = 0xffff_ffff_ef10_0003;
const VFIO_DATA_STATE: u64 = 0xffff_ffff_ef10_0004;
const VFIO_INIT_DATA_SENT: u64 = 0xffff_ffff_ef10_0005;

/// One tagged chunk of a `vfio` section. The device configuration (tag ..02) has no length and ends
/// the walk.
pub(super) fn vfio(head: &[u8]) -> Option<Walk> {
    let mut r = Reader::new(head);
    Some(match r.be64()? {
        VFIO_END_OF_STATE | VFIO_INIT_DATA_SENT => Walk::End { head: r.pos() },
        VFIO_SETUP_STATE => Walk::Step(Step::Raw {
            head: r.pos(),
            skip: 0,
        }),
        VFIO_DATA_STATE => {
            let skip = r.be64()?;
            Walk::Step(Step::Raw {
                head: r.pos(),
                skip,
            })
        }
        _ => LostSync::DeviceSection.into(),
    })
}

/// Largest early virtio-mem bitmap accepted: 64 TiB of 2 MiB blocks would be 4 MiB.
const MAX_VIRTIO_MEM_BITMAP_BYTES: u64 = 1 << 26;

/// The early state of a virtio-mem device, a section without framing: address, region size, block
/// size, node and plugged size, then one bit per block in 64-bit words. Always one step.
pub(super) fn virtio_mem_early(head: &[u8]) -> Option<Step> {
    let mut r = Reader::new(head);
    r.be64()?; // guest address
    let region_bytes = r.be64()?;
    let block_bytes = r.be64()?;
    r.be32()?; // node
    r.be64()?; // bytes plugged
    if !block_bytes.is_power_of_two() {
        return Some(Step::Lost(LostSync::DeviceSection));
    }
    let skip = region_bytes.div_ceil(block_bytes).div_ceil(64) * 8;
    if skip > MAX_VIRTIO_MEM_BITMAP_BYTES {
        return Some(Step::Lost(LostSync::DeviceSection));
    }
    Some(Step::Raw {
        head: r.pos(),
        skip,
    })
}
