//! The payload of a RAM section, version 4.
//!
//! In: the bytes between a RAM section's header and its footer; out: page and zero records, and raw
//! bytes for everything else.
//! Promises: `Page` and `Zero` are reported only for exact flags, so the codec can rebuild the
//! header; records outside their block end the parse instead of naming pages that do not exist.
//!
//! Records: be64 whose low 12 bits are flags and whose upper bits are the offset in the block; a
//! block name follows unless CONTINUE is set. The current block survives section ends.

use super::{
    BlockId, LostSync, PageAddr, TokenBuf,
    reader::{Env, Reader, Step, Walk},
    token::{
        PAGE_BITS, PAGE_BYTES, PAGE_RECORD_BYTES, PAGE_RECORD_FLAGS, Token, ZERO_RECORD_BYTES,
        ZERO_RECORD_FLAGS,
    },
};

const FLAGS: u64 = (1 << PAGE_BITS) - 1;
const ZERO: u64 = 0x02;
const MEM_SIZE: u64 = 0x04;
const PAGE: u64 = 0x08;
const EOS: u64 = 0x10;
const CONTINUE: u64 = 0x20;
const XBZRLE: u64 = 0x40;
const XBZRLE_CONTINUE: u64 = XBZRLE | CONTINUE;
const MULTIFD_FLUSH: u64 = 0x200;
/// The only encoding an XBZRLE record may name.
const XBZRLE_ENCODING: u8 = 1;

/// The block that CONTINUE refers to.
#[derive(Clone, Copy)]
struct Current {
    /// `None` when the session has no number left for it: its pages are raw.
    id: Option<BlockId>,
    /// First offset behind the block.
    limit: u64,
}

/// What [`Ram::run`] consumed.
#[derive(Default)]
pub(super) struct Run {
    pub bytes: usize,
    pub pages: u64,
    pub zero_pages: u64,
}

/// Parser for the payload of RAM sections.
#[derive(Default)]
pub(super) struct Ram {
    current: Option<Current>,
    /// Bytes of blocks that the block list has yet to name.
    list_left: u64,
    /// OR of all block page sizes, from POSTCOPY_ADVISE.
    pub page_sizes: u64,
    /// Blocks are listed with their guest address (capability x-ignore-shared).
    pub ignore_shared: bool,
    /// The blocks were listed on another connection: their sizes are not known here.
    unlisted: bool,
}

impl Ram {
    /// A parser for RAM that was announced on another connection.
    pub fn resumed() -> Self {
        Self {
            unlisted: true,
            ..Self::default()
        }
    }

    /// Cuts a run of canonical page and zero records, as many as are complete and fit. This is the
    /// path nearly all bytes take, so it looks at headers only.
    pub fn run(&self, buf: &[u8], out: &mut TokenBuf) -> Run {
        let mut run = Run::default();
        let Some(Current {
            id: Some(block),
            limit,
        }) = self.current
        else {
            return run;
        };
        if self.list_left > 0 {
            return run;
        }
        let mut rest = buf;
        while let Some(header) = rest.first_chunk::<8>()
            && out.room() > 0
        {
            let word = u64::from_be_bytes(*header);
            let addr = PageAddr {
                block,
                index: word >> PAGE_BITS,
            };
            if word & !FLAGS >= limit {
                break;
            }
            let (token, len) = match word & FLAGS {
                PAGE_RECORD_FLAGS => (Token::Page { addr }, PAGE_RECORD_BYTES),
                ZERO_RECORD_FLAGS if rest.get(8) == Some(&0) => {
                    (Token::Zero { addr }, ZERO_RECORD_BYTES)
                }
                _ => break,
            };
            let Some(behind) = rest.get(len..) else { break };
            out.push(token);
            run.bytes += len;
            if len == PAGE_RECORD_BYTES {
                run.pages += 1;
            } else {
                run.zero_pages += 1;
            }
            rest = behind;
        }
        run
    }

    /// Decides the next record.
    pub fn step(&mut self, head: &[u8], env: &mut Env<'_>) -> Option<Walk> {
        if self.list_left > 0 {
            return self.block_entry(head, env);
        }
        let mut r = Reader::new(head);
        let word = r.be64()?;
        let offset = word & !FLAGS;
        let flags = word & FLAGS;
        let block = match flags {
            EOS if offset == 0 => return Some(Walk::End { head: r.pos() }),
            MULTIFD_FLUSH if offset == 0 => {
                env.facts.multifd_flushes += 1;
                return Some(Walk::Step(Step::Raw {
                    head: r.pos(),
                    skip: 0,
                }));
            }
            MEM_SIZE => {
                self.list_left = offset;
                return Some(Walk::Step(Step::Raw {
                    head: r.pos(),
                    skip: 0,
                }));
            }
            PAGE_RECORD_FLAGS | ZERO_RECORD_FLAGS | XBZRLE_CONTINUE => self.current,
            PAGE | ZERO | XBZRLE => {
                let name = r.counted()?;
                let id = env.blocks.intern(name);
                let limit = id.map_or(Some(u64::MAX), |id| {
                    let listed = env.blocks.used_bytes(id);
                    listed.or(self.unlisted.then_some(u64::MAX))
                });
                limit.map(|limit| Current { id, limit })
            }
            _ => None,
        };
        let Some(block) = block.filter(|block| offset < block.limit) else {
            return Some(LostSync::RamRecord.into());
        };
        let addr = block.id.map(|block| PageAddr {
            block,
            index: offset >> PAGE_BITS,
        });
        let step = match flags & !CONTINUE {
            PAGE => match addr {
                // Not counted here: the record may have to be asked for again.
                Some(addr) if flags & CONTINUE != 0 => Step::Page { addr },
                Some(addr) => {
                    env.facts.pages += 1;
                    Step::Body {
                        head: r.pos(),
                        addr,
                    }
                }
                None => {
                    env.facts.pages += 1;
                    Step::Raw {
                        head: r.pos(),
                        skip: PAGE_BYTES as u64,
                    }
                }
            },
            ZERO => match (r.u8()?, addr) {
                (0, Some(addr)) if flags & CONTINUE != 0 => Step::Zero { addr },
                (0, _) => {
                    env.facts.zero_pages += 1;
                    Step::Raw {
                        head: r.pos(),
                        skip: 0,
                    }
                }
                _ => return Some(LostSync::RamRecord.into()),
            },
            _ => {
                let encoding = r.u8()?;
                let delta_bytes = r.be16()?;
                if encoding != XBZRLE_ENCODING || usize::from(delta_bytes) > PAGE_BYTES {
                    return Some(LostSync::RamRecord.into());
                }
                env.facts.xbzrle_pages += 1;
                Step::Raw {
                    head: r.pos(),
                    skip: u64::from(delta_bytes),
                }
            }
        };
        self.current = Some(block);
        Some(Walk::Step(step))
    }

    /// One entry of the block list: name, be64 bytes in use, and up to two fields whose presence
    /// the stream does not announce.
    fn block_entry(&mut self, head: &[u8], env: &mut Env<'_>) -> Option<Walk> {
        let mut r = Reader::new(head);
        let name = r.counted()?;
        let used_bytes = r.be64()?;
        let Some(left) = self
            .list_left
            .checked_sub(used_bytes)
            .filter(|_| !name.is_empty())
        else {
            return Some(LostSync::BlockList.into());
        };
        let other_page_sizes = self.page_sizes & !(PAGE_BYTES as u64);
        if other_page_sizes != 0 && self.ignore_shared {
            return Some(LostSync::BlockList.into());
        }
        if self.ignore_shared {
            r.be64()?;
        } else if other_page_sizes != 0 {
            let behind = head.get(r.pos()..).unwrap_or_default();
            // The next entry starts with a name length, never 0; a page size starts with 0. Behind
            // the last entry comes a record, whose be64 is never one of the page sizes.
            let present = if left > 0 {
                *behind.first()? == 0
            } else {
                let next = Reader::new(behind).be64()?;
                next.is_power_of_two() && next & other_page_sizes != 0
            };
            if present {
                let page_size = r.be64()?;
                if !page_size.is_power_of_two() || page_size & other_page_sizes == 0 {
                    return Some(LostSync::BlockList.into());
                }
            }
        }
        if let Some(id) = env.blocks.intern(name) {
            env.blocks.set_used_bytes(id, used_bytes);
        }
        self.list_left = left;
        Some(Walk::Step(Step::Raw {
            head: r.pos(),
            skip: 0,
        }))
    }
}
