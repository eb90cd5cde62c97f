//! Messages on a connection: length (4 bytes, little endian), then JSON.
//!
//! In: bytes of a peer that proved its name. Out: messages. Promise: memory for a message is taken from
//! a budget that all connections share, after its length was checked and piece by piece as it arrives.

use std::io;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Semaphore;

use crate::wire::FRAME_BYTES_MAX;

/// Bytes that are taken at a time.
const PIECE_BYTES: usize = 64 << 10;

/// Reads a message; nothing if the peer has ended the connection between two.
pub(super) async fn read<T: DeserializeOwned>(
    from: &mut (impl AsyncRead + Unpin),
    budget: &Semaphore,
) -> io::Result<Option<T>> {
    let mut head = [0; 4];
    match from.read_exact(&mut head).await {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let length = u32::from_le_bytes(head) as usize;
    if length > FRAME_BYTES_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a message of {length} bytes, at most {FRAME_BYTES_MAX} are read"),
        ));
    }
    let share = u32::try_from(length.div_ceil(PIECE_BYTES)).unwrap_or(u32::MAX);
    let _share = budget.acquire_many(share).await.map_err(io::Error::other)?;
    let mut body = Vec::new();
    while body.len() < length {
        let at = body.len();
        body.resize(length.min(at + PIECE_BYTES), 0);
        from.read_exact(&mut body[at..]).await?;
    }
    let message = serde_json::from_slice(&body);
    message
        .map(Some)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Pieces that a budget of so many bytes holds.
pub(super) const fn pieces(bytes: usize) -> usize {
    bytes / PIECE_BYTES
}

/// Writes a message.
pub(super) async fn write(
    to: &mut (impl AsyncWrite + Unpin),
    message: &impl Serialize,
) -> io::Result<()> {
    let mut out = vec![0; 4];
    serde_json::to_writer(&mut out, message)?;
    let length = out.len() - 4;
    if length > FRAME_BYTES_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("a message of {length} bytes, at most {FRAME_BYTES_MAX} are sent"),
        ));
    }
    let head = u32::try_from(length).unwrap_or(u32::MAX);
    out[..4].copy_from_slice(&head.to_le_bytes());
    to.write_all(&out).await?;
    to.flush().await
}
