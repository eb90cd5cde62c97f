//! What the guest keeps in its memory.
//!
//! In: a seed, a page number and a version. Out: the 4,096 bytes of that page at that version.
//! Promise: a pure function, the same in the guest and on the host, so that the guest can check
//! every byte of itself at any time from a table of versions alone. The mix follows a heap of an
//! in-memory database (text records, structs full of pointers, copies, near copies, encrypted
//! values); a test states what page-wise zstd makes of it. Plain std, because the guest's program
//! is built from this file without any crate.

/// Size of a guest page in bytes.
pub const PAGE_BYTES: usize = 4096;
/// Every so many versions a page is rewritten as a whole; the versions between are small edits.
pub const REWRITE_EVERY: u32 = 8;
/// Pages of one class lie together in runs of this many, as an allocator's arenas do.
const RUN_PAGES: u64 = 16;
/// Distinct pages behind all exact duplicates.
const DUPLICATE_TEMPLATES: u64 = 64;
/// Distinct pages behind all near duplicates.
const NEAR_TEMPLATES: u64 = 256;
const WORDS: usize = 1024;
/// Room behind a page for the record that runs over its end.
const SLACK_BYTES: usize = 512;

/// One page as bytes.
pub type Page = [u8; PAGE_BYTES];

/// What a page holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageClass {
    /// JSON-like records, 45 %.
    Text,
    /// Structs with pointers, counters and hashes, 25 %.
    Records,
    /// A shared template with a few bytes changed, 10 %.
    NearDuplicate,
    /// An exact copy of other pages, 6 %.
    Duplicate,
    /// Incompressible bytes, 10 %.
    Random,
    /// All zero until edited, 4 %.
    Zero,
}

/// A small generator (splitmix64, Steele et al. 2014): fast under emulation and seedable per page.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// A generator whose sequence depends on all three values.
    #[must_use]
    pub fn new(seed: u64, page: u64, salt: u64) -> Self {
        let mut rng = Self(seed ^ page.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ salt.rotate_left(40));
        rng.next_u64();
        rng
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[derive(Clone, Copy)]
struct Word {
    bytes: [u8; 16],
    len: usize,
}

/// The deterministic content of one guest.
pub struct Model {
    seed: u64,
    words: Vec<Word>,
}

impl Model {
    /// The model for one seed; two guests with the same seed hold the same pages.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            words: word_table(),
        }
    }

    /// The class of a page; it never changes.
    #[must_use]
    pub fn class(&self, page: u64) -> PageClass {
        match Rng::new(self.seed, page / RUN_PAGES, 1).next_u64() % 100 {
            0..45 => PageClass::Text,
            45..70 => PageClass::Records,
            70..80 => PageClass::NearDuplicate,
            80..86 => PageClass::Duplicate,
            86..96 => PageClass::Random,
            _ => PageClass::Zero,
        }
    }

    /// Writes the whole page as it is at `version`.
    pub fn render(&self, page: u64, version: u32, out: &mut Page) {
        let rewrite = version - version % REWRITE_EVERY;
        self.base(page, rewrite / REWRITE_EVERY, out);
        for step in rewrite + 1..=version {
            self.edit(page, step, out);
        }
    }

    /// Takes a page from `version - 1` to `version`: a rewrite or a small edit in place.
    pub fn advance(&self, page: u64, version: u32, out: &mut Page) {
        if version.is_multiple_of(REWRITE_EVERY) {
            self.base(page, version / REWRITE_EVERY, out);
        } else {
            self.edit(page, version, out);
        }
    }

    fn base(&self, page: u64, epoch: u32, out: &mut Page) {
        let mut rng = Rng::new(self.seed, page, 2 + u64::from(epoch));
        match self.class(page) {
            PageClass::Text => self.text(&mut rng, out),
            PageClass::Records => records(&mut rng, out),
            PageClass::Random => {
                for chunk in out.chunks_exact_mut(8) {
                    chunk.copy_from_slice(&rng.next_u64().to_le_bytes());
                }
            }
            PageClass::Zero => out.fill(0),
            PageClass::Duplicate => self.template(rng.next_u64() % DUPLICATE_TEMPLATES, out),
            PageClass::NearDuplicate => {
                self.template(1_000 + rng.next_u64() % NEAR_TEMPLATES, out);
                for _ in 0..1 + rng.next_u64() % 5 {
                    put(out, rng.next_u64(), rng.next_u64().to_le_bytes());
                }
            }
        }
    }

    /// Templates do not depend on the seed: two guests of one image share them.
    fn template(&self, id: u64, out: &mut Page) {
        let mut rng = Rng::new(0x7e3a, id, 3);
        if id.is_multiple_of(3) {
            records(&mut rng, out)
        } else {
            self.text(&mut rng, out)
        }
    }

    /// A few words of eight bytes change, as counters, lengths and time stamps do.
    fn edit(&self, page: u64, version: u32, out: &mut Page) {
        let mut rng = Rng::new(self.seed, page, (1 << 33) + u64::from(version));
        let text = self.class(page) == PageClass::Text;
        for _ in 0..1 + rng.next_u64() % 4 {
            let (at, value) = (rng.next_u64(), rng.next_u64());
            let bytes = if text {
                digits(value)
            } else {
                (value & 0xff_ffff).to_le_bytes()
            };
            put(out, at, bytes);
        }
    }

    fn text(&self, rng: &mut Rng, out: &mut Page) {
        let mut line = Line {
            bytes: [0; PAGE_BYTES + SLACK_BYTES],
            len: 0,
        };
        let mut id = rng.next_u64() % 90_000_000;
        while line.len < PAGE_BYTES {
            let (a, b, c) = (rng.next_u64(), rng.next_u64(), rng.next_u64());
            id += 1 + a % 7;
            line.text(b"{\"id\":");
            line.text(&digits(id));
            line.text(b",\"user\":\"");
            line.word(self.word(a));
            line.text(b".");
            line.word(self.word(a >> 20));
            line.text(b"\",\"city\":\"");
            line.word(self.word(a >> 40));
            line.text(b"\",\"at\":\"2025-1");
            line.text(&digits(b)[..1]);
            line.text(b"-0");
            line.text(&digits(b)[1..2]);
            line.text(b"T12:");
            line.text(&digits(b)[2..4]);
            line.text(b":");
            line.text(&digits(b)[4..6]);
            line.text(b"Z\",\"total\":");
            line.text(&digits(b >> 32)[..5]);
            line.text(b",\"items\":[\"");
            line.word(self.word(c));
            line.text(b"\",\"");
            line.word(self.word(c >> 20));
            line.text(b"\",\"");
            line.word(self.word(c >> 40));
            line.text(b"\"],\"note\":\"");
            for shift in [4, 14, 24, 34, 44] {
                line.word(self.word((b ^ c) >> shift));
                line.text(b" ");
            }
            line.text(b"\",\"token\":\"");
            line.text(&hex(rng.next_u64()));
            line.text(b"\"}\n");
        }
        out.copy_from_slice(&line.bytes[..PAGE_BYTES]);
    }

    /// Frequent words come more often: the smaller of two draws.
    fn word(&self, bits: u64) -> &Word {
        let index = (bits & 0x3ff).min((bits >> 10) & 0x3ff);
        &self.words[usize::try_from(index).unwrap_or(0) % WORDS]
    }
}

struct Line {
    bytes: [u8; PAGE_BYTES + SLACK_BYTES],
    len: usize,
}

impl Line {
    fn text(&mut self, text: &[u8]) {
        self.bytes[self.len..self.len + text.len()].copy_from_slice(text);
        self.len += text.len();
    }

    /// Copies a fixed 16 bytes and moves on by the word's length: cheaper under emulation.
    fn word(&mut self, word: &Word) {
        self.bytes[self.len..self.len + 16].copy_from_slice(&word.bytes);
        self.len += word.len;
    }
}

/// Entries of 64 bytes as in a hash table: two pointers, a hash, counters, a time, flags.
fn records(rng: &mut Rng, out: &mut Page) {
    let arena = 0x7f3a_0000_0000 + (rng.next_u64() & 0xff_0000_0000);
    let kind = rng.next_u64() & 0xff;
    let mut time = 1_760_000_000_000 + (rng.next_u64() & 0xfff_ffff);
    for entry in out.chunks_exact_mut(64) {
        let (a, b) = (rng.next_u64(), rng.next_u64());
        time += a & 0xff;
        let fields = [
            arena + ((a >> 8) & 0xff_ffff) * 16,
            arena + ((a >> 32) & 0xff_ffff) * 16,
            b,
            time,
            a >> 60,
            (b >> 20) & 0x3f,
            kind << 32 | 1,
            0,
        ];
        for (cell, field) in entry.chunks_exact_mut(8).zip(fields) {
            cell.copy_from_slice(&field.to_le_bytes());
        }
    }
}

fn put(out: &mut Page, at: u64, bytes: [u8; 8]) {
    let cells = PAGE_BYTES / 8;
    let start = usize::try_from(at % cells as u64).unwrap_or(0) * 8;
    out[start..start + 8].copy_from_slice(&bytes);
}

fn digits(mut value: u64) -> [u8; 8] {
    let mut out = [b'0'; 8];
    for place in out.iter_mut().rev() {
        *place = b'0' + (value % 10) as u8;
        value /= 10;
    }
    out
}

fn hex(value: u64) -> [u8; 16] {
    let mut out = [0; 16];
    for (index, place) in out.iter_mut().enumerate() {
        *place = b"0123456789abcdef"[((value >> (index * 4)) & 15) as usize];
    }
    out
}

fn word_table() -> Vec<Word> {
    const SYLLABLES: [&str; 32] = [
        "an", "ber", "ca", "den", "el", "for", "ga", "hol", "in", "jo", "ker", "la", "mi", "nor",
        "o", "per", "qui", "ra", "ster", "ta", "un", "ver", "wa", "xi", "yor", "zen", "shi", "ton",
        "ment", "ing", "ly", "son",
    ];
    let mut rng = Rng::new(0x10c5, 0, 0);
    (0..WORDS)
        .map(|_| {
            let mut word = Word {
                bytes: [b' '; 16],
                len: 0,
            };
            let draw = rng.next_u64();
            for part in 0..2 + draw % 3 {
                let syllable = SYLLABLES[((draw >> (4 + part * 5)) & 31) as usize].as_bytes();
                word.bytes[word.len..word.len + syllable.len()].copy_from_slice(syllable);
                word.len += syllable.len();
            }
            word
        })
        .collect()
}

/// A checksum over pages that depends on their order; not cryptographic.
#[must_use]
pub fn fold(sum: u64, page: &Page) -> u64 {
    page.chunks_exact(8).fold(sum, |sum, cell| {
        let mut word = [0; 8];
        word.copy_from_slice(cell);
        (sum ^ u64::from_le_bytes(word))
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(29)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advancing_step_by_step_equals_rendering_at_once() {
        let model = Model::new(7);
        for page in [0, 17, 40, 333, 1_000, 4_242, 9_999] {
            let mut stepped = [0; PAGE_BYTES];
            model.render(page, 0, &mut stepped);
            for version in 1..40 {
                model.advance(page, version, &mut stepped);
                let mut whole = [0xaa; PAGE_BYTES];
                model.render(page, version, &mut whole);
                assert_eq!(stepped, whole, "page {page} version {version}");
            }
        }
    }

    #[test]
    fn neighbouring_versions_seeds_and_pages_differ() {
        let model = Model::new(7);
        let text = (0..)
            .find(|page| model.class(*page) == PageClass::Text)
            .unwrap();
        let (mut a, mut b) = ([0; PAGE_BYTES], [0; PAGE_BYTES]);
        for version in 0..20 {
            model.render(text, version, &mut a);
            model.render(text, version + 1, &mut b);
            assert_ne!(a, b);
        }
        model.render(text, 0, &mut a);
        model.render(text + 1, 0, &mut b);
        assert_ne!(a, b);
    }

    #[test]
    fn every_class_occurs_in_about_its_share() {
        let model = Model::new(7);
        let share = |class| (0..200_000).filter(|p| model.class(*p) == class).count() / 2_000;
        for (class, percent) in [
            (PageClass::Text, 45_i64),
            (PageClass::Records, 25),
            (PageClass::NearDuplicate, 10),
            (PageClass::Duplicate, 6),
            (PageClass::Random, 10),
            (PageClass::Zero, 4),
        ] {
            let found = i64::try_from(share(class)).unwrap();
            assert!(
                (found - percent).abs() <= 2,
                "{class:?}: {found} % instead of {percent} %"
            );
        }
    }
}
