//! The log as bytes: batches of records, each batch with its number and its checksum.
//!
//! In: [`Record`]s, or the bytes of a file. Out: bytes, or the [`Image`] that the records add up to.
//! Promises: a batch counts whole or not at all; a batch is written only after the one before it is
//! on disk, so a bad batch with a good one behind it is damage, not a crash, and is refused.
//!
//! | bytes | batch |
//! |---|---|
//! | 0–3 | `DWCL` |
//! | 4–7 | length of the records, little endian |
//! | 8–15 | number of the batch, from 0 in each file |
//! | 16–19 | CRC-32 of bytes 4–15 and the records |
//! | 20– | records: kind (1), length (4), value as JSON |

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::conf::{Entry, LogId, Vote};
use crate::plant::{Bug, planted};

const MAGIC: [u8; 4] = *b"DWCL";
const HEAD_BYTES: usize = 20;
/// Longest batch, bytes of records.
pub(crate) const BATCH_BYTES_MAX: usize = 64 << 20;

const VOTE: u8 = 1;
const ENTRY: u8 = 2;
const TRUNCATE: u8 = 3;
const PURGE: u8 = 4;
const COMMITTED: u8 = 5;

/// One change of the log.
#[derive(Clone, Debug)]
pub(crate) enum Record {
    /// The member's vote.
    Vote(Vote),
    /// An entry at an index, encoded.
    Entry(u64, Arc<[u8]>),
    /// Entries behind this index are void; none: all.
    Truncate(Option<u64>),
    /// Entries up to here are in a snapshot.
    Purge(LogId),
    /// Entries up to here are committed.
    Committed(LogId),
}

/// A file that cannot be read back.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Something behind the damage was on disk once.
    #[error(
        "{file} is damaged at byte {at}: acknowledged entries may be lost; remove this member from the cluster and add it again under a new number with an empty folder"
    )]
    Damaged {
        /// File meant.
        file: String,
        /// Where it begins to be bad.
        at: usize,
    },
    /// A record whose checksum is right does not decode.
    #[error("{file} was written by another version ({reason}): go back to that version")]
    Foreign {
        /// File meant.
        file: String,
        /// What the decoder said.
        reason: String,
    },
}

/// What the records add up to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Image {
    pub(crate) vote: Option<Vote>,
    pub(crate) committed: Option<LogId>,
    pub(crate) purged: Option<LogId>,
    pub(crate) entries: BTreeMap<u64, Arc<[u8]>>,
}

impl Image {
    /// Takes one record in.
    pub(crate) fn take(&mut self, record: &Record) {
        match record {
            Record::Vote(vote) => self.vote = Some(*vote),
            Record::Entry(index, bytes) => {
                self.entries.insert(*index, bytes.clone());
            }
            Record::Truncate(None) => self.entries.clear(),
            Record::Truncate(Some(last)) => {
                self.entries.split_off(&(last + 1));
            }
            Record::Purge(upto) => {
                self.entries = self.entries.split_off(&(upto.index + 1));
                self.purged = Some(*upto);
            }
            Record::Committed(upto) => self.committed = Some(*upto),
        }
    }

    /// The records that give this image again.
    pub(crate) fn records(&self) -> Vec<Record> {
        let mut records: Vec<Record> = Vec::with_capacity(self.entries.len() + 3);
        records.extend(self.vote.map(Record::Vote));
        records.extend(self.purged.map(Record::Purge));
        if !planted(Bug::CheckpointWithoutEntries) {
            let entries = self.entries.iter();
            records.extend(entries.map(|(at, bytes)| Record::Entry(*at, bytes.clone())));
        }
        records.extend(self.committed.map(Record::Committed));
        records
    }
}

/// Puts records into a batch.
pub(crate) fn encode<'a>(
    number: u64,
    records: impl IntoIterator<Item = &'a Record>,
) -> Result<Vec<u8>, serde_json::Error> {
    let mut out = vec![0; HEAD_BYTES];
    for record in records {
        match record {
            Record::Vote(vote) => put(&mut out, VOTE, &json(vote)?),
            Record::Entry(_, bytes) => put(&mut out, ENTRY, bytes),
            Record::Truncate(last) => put(&mut out, TRUNCATE, &json(last)?),
            Record::Purge(upto) => put(&mut out, PURGE, &json(upto)?),
            Record::Committed(upto) => put(&mut out, COMMITTED, &json(upto)?),
        }
    }
    let length = u32::try_from(out.len() - HEAD_BYTES).unwrap_or(u32::MAX);
    out[..4].copy_from_slice(&MAGIC);
    out[4..8].copy_from_slice(&length.to_le_bytes());
    out[8..16].copy_from_slice(&number.to_le_bytes());
    let sum = checksum(&out[4..16], &out[HEAD_BYTES..]);
    out[16..20].copy_from_slice(&sum.to_le_bytes());
    Ok(out)
}

/// An entry as its record holds it.
pub(crate) fn encode_entry(entry: &Entry) -> Result<Arc<[u8]>, serde_json::Error> {
    json(entry).map(Into::into)
}

/// An entry out of its record.
pub(crate) fn decode_entry(bytes: &[u8]) -> Result<Entry, serde_json::Error> {
    serde_json::from_slice(bytes)
}

fn json(value: &impl Serialize) -> Result<Vec<u8>, serde_json::Error> {
    serde_json::to_vec(value)
}

fn put(out: &mut Vec<u8>, kind: u8, value: &[u8]) {
    out.push(kind);
    let length = u32::try_from(value.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(value);
}

fn checksum(head: &[u8], records: &[u8]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(head);
    sum.update(records);
    sum.finalize()
}

/// Reads a file back; nothing if not even its first batch was written whole.
///
/// # Errors
/// [`JournalError`].
pub(crate) fn replay(file: &str, bytes: &[u8]) -> Result<Option<Image>, JournalError> {
    let mut image = Image::default();
    let mut at = 0;
    let mut number = 0;
    while let Some(records) = batch(bytes, at, number) {
        let foreign = |reason: String| JournalError::Foreign {
            file: file.to_owned(),
            reason,
        };
        take_all(&mut image, records).map_err(foreign)?;
        at += HEAD_BYTES + records.len();
        number += 1;
    }
    let behind = (at + 1..bytes.len().saturating_sub(HEAD_BYTES))
        .filter(|place| bytes[*place..].starts_with(&MAGIC));
    for place in behind {
        let claimed = word64(&bytes[place + 8..]);
        if claimed > number && batch(bytes, place, claimed).is_some() {
            return Err(JournalError::Damaged {
                file: file.to_owned(),
                at,
            });
        }
    }
    Ok((number > 0).then_some(image))
}

/// The records of the batch at a place, if it is whole and has this number.
fn batch(bytes: &[u8], at: usize, number: u64) -> Option<&[u8]> {
    let head = bytes.get(at..at + HEAD_BYTES)?;
    let length = word32(&head[4..]) as usize;
    if head[..4] != MAGIC || length > BATCH_BYTES_MAX || word64(&head[8..]) != number {
        return None;
    }
    let records = bytes.get(at + HEAD_BYTES..at + HEAD_BYTES + length)?;
    let whole = checksum(&head[4..16], records) == word32(&head[16..]);
    (whole || planted(Bug::ChecksumIgnored)).then_some(records)
}

fn take_all(image: &mut Image, mut records: &[u8]) -> Result<(), String> {
    while let Some((kind, rest)) = records.split_first() {
        let length = rest.get(..4).map(word32).ok_or("a record without length")? as usize;
        let value = rest.get(4..4 + length).ok_or("a record that is cut off")?;
        records = &rest[4 + length..];
        let record = match *kind {
            VOTE => Record::Vote(decode(value)?),
            ENTRY => {
                let entry: Entry = decode(value)?;
                Record::Entry(entry.log_id.index, value.into())
            }
            TRUNCATE => Record::Truncate(decode(value)?),
            PURGE => Record::Purge(decode(value)?),
            COMMITTED => Record::Committed(decode(value)?),
            other => return Err(format!("a record of kind {other}")),
        };
        image.take(&record);
    }
    Ok(())
}

fn decode<T: DeserializeOwned>(value: &[u8]) -> Result<T, String> {
    serde_json::from_slice(value).map_err(|error| error.to_string())
}

fn word32(bytes: &[u8]) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[..4]);
    u32::from_le_bytes(word)
}

fn word64(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[..8]);
    u64::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use openraft::vote::RaftLeaderIdExt;
    use proptest::prelude::*;

    fn entry(index: u64) -> Record {
        let log_id = LogId::new(crate::conf::LeaderId::new_committed(1, 1), index);
        let entry = Entry {
            log_id,
            payload: openraft::EntryPayload::Blank,
        };
        Record::Entry(index, encode_entry(&entry).unwrap())
    }

    fn file(batches: u64) -> Vec<u8> {
        (0..batches)
            .flat_map(|number| encode(number, &[entry(number * 2), entry(number * 2 + 1)]).unwrap())
            .chain([0; 64])
            .collect()
    }

    #[test]
    fn what_was_written_is_read() {
        let image = replay("log", &file(3)).unwrap().unwrap();
        assert_eq!(image.entries.len(), 6);
        assert!(replay("log", &[0; 100]).unwrap().is_none());
        assert!(replay("log", &[]).unwrap().is_none());
    }

    #[test]
    fn a_batch_that_was_cut_off_does_not_count() {
        let whole = file(3);
        let third = whole.len() - 64 - 10;
        let image = replay("log", &whole[..third]).unwrap().unwrap();
        assert_eq!(image.entries.len(), 4);
    }

    #[test]
    fn damage_before_a_good_batch_is_refused() {
        let mut bytes = file(3);
        bytes[HEAD_BYTES + 8] ^= 1;
        assert!(matches!(
            replay("log", &bytes),
            Err(JournalError::Damaged { at: 0, .. })
        ));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..400), at in 0usize..400) {
            let mut file = file(2);
            for (place, byte) in bytes.iter().enumerate() {
                if let Some(old) = file.get_mut(at + place) {
                    *old = *byte;
                }
            }
            let _ = replay("log", &file);
            let _ = replay("log", &bytes);
        }
    }
}
