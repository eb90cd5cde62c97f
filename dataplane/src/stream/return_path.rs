//! The return path: messages from destination to source.
//!
//! In: the bytes of the main connection in that direction; out: raw bytes, and what was said.
//! Promises: bytes are never held back, changed or answered here; only the destination itself may
//! say that it has the guest.
//!
//! A message is be16 type, be16 length and payload.

use super::{
    LostSync,
    reader::{Env, Reader, Step},
};

const SHUT: u16 = 1;
const PONG: u16 = 2;
const REQ_PAGES_ID: u16 = 3;
const REQ_PAGES: u16 = 4;
const RECV_BITMAP: u16 = 5;
const RESUME_ACK: u16 = 6;
const SWITCHOVER_ACK: u16 = 7;
/// Largest bitmap of received pages accepted: one bit per page of 128 TiB.
const MAX_RECV_BITMAP_BYTES: u64 = 1 << 32;

/// Decides the next message.
pub(super) fn message(head: &[u8], env: &mut Env<'_>) -> Option<Step> {
    let mut r = Reader::new(head);
    let (kind, payload_bytes) = (r.be16()?, r.be16()?);
    let facts = &mut env.facts.return_path;
    match (kind, payload_bytes) {
        (SHUT, 4) => facts.shut = Some(r.be32()?),
        (PONG, 4) => {
            r.be32()?;
            facts.pongs += 1;
        }
        (REQ_PAGES_ID, 13..) | (REQ_PAGES, 12) => {
            facts.page_requests += 1;
            return Some(Step::Raw {
                head: r.pos(),
                skip: u64::from(payload_bytes),
            });
        }
        (RECV_BITMAP, 1..=256) => {
            r.take(usize::from(payload_bytes))?;
            // The bitmap lies behind the message: be64 size, bitmap, be64 end mark.
            let bitmap_bytes = r.be64()?;
            if bitmap_bytes > MAX_RECV_BITMAP_BYTES {
                return Some(Step::Lost(LostSync::ReturnMessage));
            }
            return Some(Step::Raw {
                head: r.pos(),
                skip: bitmap_bytes + 8,
            });
        }
        (RESUME_ACK, 4) => {
            r.be32()?;
        }
        (SWITCHOVER_ACK, 0) => facts.switchover_ack_seen = true,
        _ => return Some(Step::Lost(LostSync::ReturnMessage)),
    }
    Some(Step::Raw {
        head: r.pos(),
        skip: 0,
    })
}
