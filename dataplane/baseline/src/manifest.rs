//! The manifest file: which blocks, in which order, and where each lies.
//!
//! In: entries, or the bytes of a file of any provenance. Out: bytes, or entries whose checksum and id agree.
//! Promise: a length is compared with the file's before anything is taken for it. Layout, little-endian:
//!
//! | bytes | field |
//! |---|---|
//! | 8 | `DWCPBAS1` |
//! | 32 | id: BLAKE3 over the digests |
//! | 1 + 1 | kind, length of the name |
//! | 6 | zero |
//! | 8 | when it was made, seconds since 1970 |
//! | 8 | bytes of the image, or of the pages |
//! | 8 | number of blocks |
//! | – | name |
//! | 48 each | digest 32, fast hash 8, segment 4, place in the segment 4 |
//! | 32 | BLAKE3 of all before |

use std::path::Path;

use crate::block::Digest;
use crate::error::StoreError;
use crate::names::ManifestId;

const MAGIC: &[u8; 8] = b"DWCPBAS1";
const HEAD_BYTES: usize = 72;
/// Bytes of one entry.
pub(crate) const ENTRY_BYTES: usize = 48;
const CHECKSUM_BYTES: usize = 32;
/// Bytes of a name at most.
pub const NAME_BYTES_MAX: usize = 200;
/// Blocks of a manifest at most, 1 TiB of them.
pub const BLOCKS_MAX: usize = 1 << 28;

/// Where the blocks come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A disk image.
    Image,
    /// The pages of a guest that was moved.
    Migration,
}

impl Kind {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Migration => "migration",
        }
    }
}

/// One block of a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub digest: Digest,
    /// The fast hash of it under the store's key.
    pub hash: u64,
    /// Where it lies.
    pub place: Place,
}

/// Where a block lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Number of the segment.
    pub segment: u32,
    /// Blocks before it there.
    pub index: u32,
}

/// What a manifest says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Its id.
    pub id: ManifestId,
    /// Where its blocks come from.
    pub kind: Kind,
    /// For people.
    pub name: String,
    /// When it was made, seconds since 1970.
    pub created_s: u64,
    /// When it was last used, seconds since 1970.
    pub used_s: u64,
    /// Bytes of the image, or of the pages.
    pub logical_bytes: u64,
    /// Distinct blocks that are not all zero.
    pub blocks: u64,
}

/// The id of a list of digests.
pub(crate) fn id_of<'a>(digests: impl Iterator<Item = &'a Digest>) -> ManifestId {
    let mut hasher = blake3::Hasher::new();
    for digest in digests {
        hasher.update(digest);
    }
    ManifestId(*hasher.finalize().as_bytes())
}

/// The file for `summary`, whose id and number of blocks follow from `entries`.
#[must_use]
pub fn encode(summary: &Summary, entries: &[Entry]) -> Vec<u8> {
    let mut end = summary.name.len().min(NAME_BYTES_MAX);
    while !summary.name.is_char_boundary(end) {
        end -= 1;
    }
    let name = &summary.name.as_bytes()[..end];
    let mut out =
        Vec::with_capacity(HEAD_BYTES + name.len() + entries.len() * ENTRY_BYTES + CHECKSUM_BYTES);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&summary.id.0);
    out.push(match summary.kind {
        Kind::Image => 1,
        Kind::Migration => 2,
    });
    out.push(name.len() as u8);
    out.extend_from_slice(&[0; 6]);
    out.extend_from_slice(&summary.created_s.to_le_bytes());
    out.extend_from_slice(&summary.logical_bytes.to_le_bytes());
    out.extend_from_slice(&(entries.len() as u64).to_le_bytes());
    out.extend_from_slice(name);
    for entry in entries {
        out.extend_from_slice(&entry.digest);
        out.extend_from_slice(&entry.hash.to_le_bytes());
        out.extend_from_slice(&entry.place.segment.to_le_bytes());
        out.extend_from_slice(&entry.place.index.to_le_bytes());
    }
    let checksum = blake3::hash(&out);
    out.extend_from_slice(checksum.as_bytes());
    out
}

struct Head<'a> {
    summary: Summary,
    entries: &'a [u8],
}

/// Reads the head alone; `file_bytes` is the length of the whole file.
fn head(bytes: &[u8], file_bytes: u64) -> Option<(Summary, usize)> {
    let fixed = bytes.get(..HEAD_BYTES)?;
    let word = |at: usize| -> Option<u64> {
        Some(u64::from_le_bytes(fixed.get(at..at + 8)?.try_into().ok()?))
    };
    if fixed.get(..8)? != MAGIC || fixed.get(42..48)? != [0; 6] {
        return None;
    }
    let kind = match fixed.get(40)? {
        1 => Kind::Image,
        2 => Kind::Migration,
        _ => return None,
    };
    let name_bytes = usize::from(*fixed.get(41)?);
    if name_bytes > NAME_BYTES_MAX {
        return None;
    }
    let blocks = word(64)?;
    let count = usize::try_from(blocks)
        .ok()
        .filter(|&count| count > 0 && count <= BLOCKS_MAX)?;
    let entries_at = HEAD_BYTES + name_bytes;
    let whole = entries_at + count * ENTRY_BYTES + CHECKSUM_BYTES;
    if file_bytes != whole as u64 {
        return None;
    }
    let name = std::str::from_utf8(bytes.get(HEAD_BYTES..entries_at)?).ok()?;
    let summary = Summary {
        id: ManifestId(fixed.get(8..40)?.try_into().ok()?),
        kind,
        name: name.to_owned(),
        created_s: word(48)?,
        used_s: 0,
        logical_bytes: word(56)?,
        blocks,
    };
    Some((summary, entries_at))
}

fn parse(bytes: &[u8]) -> Option<Head<'_>> {
    let (summary, entries_at) = head(bytes, bytes.len() as u64)?;
    let (signed, checksum) = bytes.split_last_chunk::<CHECKSUM_BYTES>()?;
    let entries = signed.get(entries_at..)?;
    let (chunks, _) = entries.as_chunks::<ENTRY_BYTES>();
    let digests = chunks.iter().filter_map(|entry| entry.first_chunk::<32>());
    let agrees = blake3::hash(signed).as_bytes() == checksum && id_of(digests) == summary.id;
    agrees.then_some(Head { summary, entries })
}

/// Reads a whole file; `None` if it is not what [`encode`] writes.
#[must_use]
pub fn decode(bytes: &[u8]) -> Option<(Summary, Vec<Entry>)> {
    let Head { summary, entries } = parse(bytes)?;
    let (chunks, _) = entries.as_chunks::<ENTRY_BYTES>();
    let entries = chunks
        .iter()
        .map(|chunk| {
            let word = |at: usize| {
                u32::from_le_bytes([chunk[at], chunk[at + 1], chunk[at + 2], chunk[at + 3]])
            };
            let mut digest = [0; 32];
            digest.copy_from_slice(&chunk[..32]);
            Entry {
                digest,
                hash: u64::from(word(32)) | u64::from(word(36)) << 32,
                place: Place {
                    segment: word(40),
                    index: word(44),
                },
            }
        })
        .collect();
    Some((summary, entries))
}

/// Makes id and checksum of a file those of its entries and bytes, as far as it has any: what is left to
/// [`decode`] is all else that may be wrong with it. For fuzzing.
pub fn put_right(file: &mut [u8]) {
    let name_bytes = file.get(41).map_or(0, |len| usize::from(*len));
    let Some((signed, checksum)) = file.split_last_chunk_mut::<CHECKSUM_BYTES>() else {
        return;
    };
    if let Some(entries) = signed.get(HEAD_BYTES + name_bytes..) {
        let (chunks, _) = entries.as_chunks::<ENTRY_BYTES>();
        let id = id_of(chunks.iter().filter_map(|entry| entry.first_chunk::<32>()));
        signed[8..40].copy_from_slice(&id.0);
    }
    *checksum = *blake3::hash(signed).as_bytes();
}

/// Reads what a file says of itself, without its checksum.
pub(crate) fn read_summary(path: &Path, id: ManifestId) -> Result<Summary, StoreError> {
    use std::io::Read as _;
    let io = || StoreError::io(path);
    let mut file = std::fs::File::open(path).map_err(io())?;
    let meta = file.metadata().map_err(io())?;
    let mut bytes = Vec::with_capacity(HEAD_BYTES + NAME_BYTES_MAX);
    (&mut file)
        .take((HEAD_BYTES + 255) as u64)
        .read_to_end(&mut bytes)
        .map_err(io())?;
    let (mut summary, _) = head(&bytes, meta.len()).ok_or(StoreError::BadManifest(id))?;
    if summary.id != id {
        return Err(StoreError::BadManifest(id));
    }
    summary.used_s = meta
        .modified()
        .ok()
        .and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok())
        .map_or(0, |since| since.as_secs());
    Ok(summary)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entries(count: usize) -> Vec<Entry> {
        (0..count as u32)
            .map(|i| Entry {
                digest: *blake3::hash(&i.to_le_bytes()).as_bytes(),
                hash: u64::from(i) << 33 | 5,
                place: Place {
                    segment: i % 3,
                    index: i,
                },
            })
            .collect()
    }

    fn sample(count: usize, name: &str) -> (Summary, Vec<Entry>) {
        let entries = entries(count);
        let summary = Summary {
            id: id_of(entries.iter().map(|entry| &entry.digest)),
            kind: Kind::Migration,
            name: name.to_owned(),
            created_s: 77,
            used_s: 0,
            logical_bytes: 1 << 40,
            blocks: count as u64,
        };
        (summary, entries)
    }

    #[test]
    fn comes_back_whole_or_not_at_all() {
        let (summary, entries) = sample(7, "a name");
        let bytes = encode(&summary, &entries);
        assert_eq!(decode(&bytes), Some((summary, entries)));
        for len in 0..bytes.len() {
            assert_eq!(decode(&bytes[..len]), None, "{len}");
        }
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0x10;
            assert_eq!(decode(&changed), None, "byte {at}");
        }
    }

    #[test]
    fn a_long_name_is_cut_between_characters() {
        let (summary, entries) = sample(1, &"é".repeat(150));
        let (read, _) = decode(&encode(&summary, &entries)).unwrap();
        assert_eq!(read.name, "é".repeat(100));
    }

    /// The fuzzer begins with a whole file, and with one whose id and checksum it must put right. After a change of
    /// the format, run this with `WRITE_FUZZ_SEEDS=1` in the environment.
    #[test]
    fn the_fuzz_seeds_are_manifests() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/manifest");
        let (summary, entries) = sample(3, "seed");
        let whole = encode(&summary, &entries);
        let mut bent = whole.clone();
        bent[8] ^= 1;
        bent[80] ^= 1;
        for (name, kind, file) in [("whole", 0, whole), ("bent", 1, bent)] {
            let path = folder.join(name);
            if std::env::var_os("WRITE_FUZZ_SEEDS").is_some() {
                std::fs::create_dir_all(&folder).unwrap();
                std::fs::write(&path, [&[kind], &file[..]].concat()).unwrap();
            }
            let seed = std::fs::read(&path).unwrap();
            let (kind, file) = seed.split_first().unwrap();
            let mut file = file.to_vec();
            assert_eq!(decode(&file).is_some(), *kind == 0);
            put_right(&mut file);
            let (summary, entries) = decode(&file).unwrap();
            assert_eq!((summary.name.as_str(), entries.len()), ("seed", 3));
            assert!(encode(&summary, &entries) == file);
        }
    }

    proptest! {
        #[test]
        fn bytes_of_any_provenance_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400), magic in any::<bool>()) {
            let mut bytes = bytes;
            if magic && bytes.len() >= 8 {
                bytes[..8].copy_from_slice(MAGIC);
            }
            prop_assert_eq!(decode(&bytes), None);
        }
    }
}
