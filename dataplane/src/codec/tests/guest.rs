//! A small synthetic guest whose pages change the way that pages do, and batches of its stream.

use proptest::prelude::*;

use crate::codec::{CodecConfig, Page};
use crate::stream::{BlockId, PAGE_BYTES, PageAddr, Token};
use dwcp_hugepages::arena::BackingPolicy;

/// One thing that happens to the stream.
#[derive(Clone, Debug)]
pub(super) enum Event {
    Raw {
        len: usize,
        fill: u8,
    },
    Zero {
        page: usize,
    },
    Page {
        page: usize,
        edit: Edit,
        header: bool,
    },
}

/// What the guest did to a page before it is sent.
#[derive(Clone, Debug)]
pub(super) enum Edit {
    Nothing,
    Words {
        seed: u64,
        words: usize,
    },
    CopyOf {
        page: usize,
    },
    Clear,
    Text {
        seed: u64,
    },
    Random {
        seed: u64,
    },
    /// Records of numbers.
    Table {
        seed: u64,
        record: usize,
    },
}

fn edit(pages: usize) -> impl Strategy<Value = Edit> {
    prop_oneof![
        2 => Just(Edit::Nothing),
        4 => (any::<u64>(), 1usize..300).prop_map(|(seed, words)| Edit::Words { seed, words }),
        2 => (0..pages).prop_map(|page| Edit::CopyOf { page }),
        1 => Just(Edit::Clear),
        2 => any::<u64>().prop_map(|seed| Edit::Text { seed }),
        2 => any::<u64>().prop_map(|seed| Edit::Random { seed }),
        2 => (any::<u64>(), 1usize..7).prop_map(|(seed, words)| Edit::Table { seed, record: 4 * words }),
    ]
}

pub(super) fn event(pages: usize) -> impl Strategy<Value = Event> {
    prop_oneof![
        1 => (1usize..60, any::<u8>()).prop_map(|(len, fill)| Event::Raw { len, fill }),
        2 => (0..pages).prop_map(|page| Event::Zero { page }),
        6 => (0..pages, edit(pages), any::<bool>())
            .prop_map(|(page, edit, header)| Event::Page { page, edit, header }),
    ]
}

pub(super) fn random_words(seed: u64) -> impl Iterator<Item = u64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    })
}

/// Where guest page `page` is: two blocks, in runs, with a far part.
pub(super) const fn addr(page: usize) -> PageAddr {
    let index = page as u64 / 2 + if page % 16 >= 12 { 1 << 33 } else { 0 };
    PageAddr {
        block: BlockId((page % 2) as u16),
        index,
    }
}

pub(super) struct Guest {
    memory: Vec<Page>,
}

impl Guest {
    pub(super) fn new(pages: usize) -> Self {
        Self {
            memory: vec![[0; PAGE_BYTES]; pages],
        }
    }

    fn apply(&mut self, page: usize, edit: &Edit) {
        match *edit {
            Edit::Nothing => {}
            Edit::Words { seed, words } => {
                for word in random_words(seed).take(words) {
                    let at = (word >> 32) as usize % (PAGE_BYTES / 8) * 8;
                    self.memory[page][at..at + 4].copy_from_slice(&(word as u32).to_le_bytes());
                }
            }
            Edit::CopyOf { page: from } => self.memory[page] = self.memory[from],
            Edit::Clear => self.memory[page] = [0; PAGE_BYTES],
            Edit::Text { seed } => {
                for (at, word) in random_words(seed).take(PAGE_BYTES / 16).enumerate() {
                    let text = format!("{{\"key\":{:>8}}}", word % 100_000);
                    self.memory[page][at * 16..][..16].copy_from_slice(&text.as_bytes()[..16]);
                }
            }
            Edit::Table { seed, record } => {
                let words = self.memory[page].as_chunks_mut::<4>().0;
                for (at, (word, to)) in random_words(seed).zip(words).enumerate() {
                    let row = (at * 4 / record) as u32;
                    let value = if at * 4 % record == 0 {
                        (seed as u32).wrapping_add(row * 4_099)
                    } else {
                        0x0812_0000 | (word >> 50) as u32
                    };
                    *to = value.to_le_bytes();
                }
            }
            Edit::Random { seed } => {
                for (word, to) in random_words(seed).zip(self.memory[page].as_chunks_mut::<8>().0) {
                    *to = word.to_le_bytes();
                }
            }
        }
    }

    /// The raw bytes and tokens of a batch in which `events` happen.
    pub(super) fn batch(&mut self, events: &[Event]) -> (Vec<u8>, Vec<Token>) {
        let mut raw = Vec::new();
        let mut tokens = Vec::new();
        for event in events {
            match event {
                Event::Raw { len, fill } => {
                    raw.extend((0..*len).map(|i| fill.wrapping_add(i as u8)));
                    tokens.push(Token::Raw { len: *len as u32 });
                }
                Event::Zero { page } => {
                    self.memory[*page] = [0; PAGE_BYTES];
                    raw.extend_from_slice(&addr(*page).zero_record());
                    tokens.push(Token::Zero { addr: addr(*page) });
                }
                Event::Page { page, edit, header } => {
                    self.apply(*page, edit);
                    let addr = addr(*page);
                    if *header {
                        raw.extend_from_slice(&addr.page_header());
                        tokens.push(Token::Page { addr });
                    } else {
                        tokens.push(Token::Body { addr });
                    }
                    raw.extend_from_slice(&self.memory[*page]);
                }
            }
        }
        (raw, tokens)
    }
}

/// Settings with a history of `slots` pages.
pub(super) const fn config(slots: usize) -> CodecConfig {
    CodecConfig {
        store_bytes: slots * PAGE_BYTES,
        backing: BackingPolicy::Ordinary,
        key: [3; 32],
        zstd_level_min: 1,
        zstd_level_max: 12,
    }
}
