//! The tokeniser of one channel and direction.
//!
//! In: the connection's bytes, in order, in pieces of any size; out: tokens for exactly the bytes
//! it says it consumed, and [`StreamFacts`].
//! Promises: without `final_` it leaves at most [`MAX_CARRY_BYTES`] unconsumed; with it nothing; in
//! both cases more may stay behind only when the token list is full. A flush in the middle of a
//! record costs that record its meaning, never its bytes, and parsing goes on right after it.

use arrayvec::ArrayVec;

use super::{
    BlockTable, ChannelKind, LostSync, PageAddr, StreamFacts, TokenBuf,
    multifd::Multifd,
    reader::{Env, MAX_HEAD_BYTES, Step},
    return_path,
    sections::Sections,
    token::{PAGE_BYTES, PAGE_RECORD_BYTES, Token, ZERO_RECORD_BYTES},
};

/// Most bytes that [`Tokeniser::feed`] leaves for the next call: one page record less one byte.
pub const MAX_CARRY_BYTES: usize = PAGE_RECORD_BYTES - 1;

/// Largest raw token made in one go.
const MAX_RAW_STEP: u64 = 1 << 30;

enum Parser {
    Main(Box<Sections>),
    Multifd(Box<Multifd>),
    ReturnPath,
    /// No longer parsed: all bytes are raw.
    Opaque,
}

/// Cuts one direction of one connection into tokens.
pub struct Tokeniser {
    parser: Parser,
    /// Raw bytes to let pass before the parser is asked again.
    skip: u64,
    /// A page to let pass before the parser is asked again.
    body: Option<PageAddr>,
    /// Bytes that a flush pushed out as raw before the parser could decide on them: at most one
    /// incomplete head, which the next step that the parser decides uses up, but for the few bytes
    /// of a record header that the block list looks ahead at.
    held: ArrayVec<u8, MAX_HEAD_BYTES>,
    facts: StreamFacts,
}

impl Tokeniser {
    /// A tokeniser at the start of a channel.
    #[must_use]
    pub fn new(kind: ChannelKind) -> Self {
        let parser = match kind {
            ChannelKind::Main => Parser::Main(Box::new(Sections::new())),
            ChannelKind::Multifd => Parser::Multifd(Box::new(Multifd::new())),
            ChannelKind::Resumed => Parser::Main(Box::new(Sections::resumed())),
            ChannelKind::ReturnPath => Parser::ReturnPath,
            // Urgent pages are not looked at: it would cost them time.
            ChannelKind::Urgent | ChannelKind::Opaque => Parser::Opaque,
        };
        Self {
            parser,
            skip: 0,
            body: None,
            held: ArrayVec::new(),
            facts: StreamFacts::at_start(kind),
        }
    }

    /// What was noticed in the bytes consumed so far.
    #[must_use]
    pub fn facts(&self) -> &StreamFacts {
        &self.facts
    }

    /// Appends tokens for a prefix of `buf` to `out` and returns that prefix's length in bytes. The
    /// caller presents the rest again, with more bytes behind it.
    ///
    /// `final_` says that nothing may be kept back: the hypervisor went idle, or closed. If `out`
    /// has no [`TokenBuf::room`] left, the caller takes the tokens and calls again.
    pub fn feed(
        &mut self,
        buf: &[u8],
        final_: bool,
        blocks: &mut BlockTable,
        out: &mut TokenBuf,
    ) -> usize {
        let mut pos = 0;
        while pos < buf.len() && out.room() > 0 {
            let rest = &buf[pos..];
            let consumed = if self.skip > 0 {
                self.pass_raw(rest, out)
            } else if let Some(addr) = self.body {
                self.pass_body(addr, rest, final_, out)
            } else {
                self.pass_parsed(rest, final_, blocks, out)
            };
            match consumed {
                Some(bytes) => pos += bytes,
                None => break,
            }
        }
        pos
    }

    /// Raw bytes that the parser need not see.
    fn pass_raw(&mut self, rest: &[u8], out: &mut TokenBuf) -> Option<usize> {
        let from_held = self
            .held
            .len()
            .min(usize::try_from(self.skip).unwrap_or(usize::MAX));
        self.held.drain(..from_held);
        self.skip -= from_held as u64;
        let bytes = self.skip.min(rest.len() as u64).min(MAX_RAW_STEP);
        self.skip -= bytes;
        Some(self.push_raw(bytes as usize, out))
    }

    /// A page whose header is gone already. `None`: it is not complete and may be waited for.
    fn pass_body(
        &mut self,
        addr: PageAddr,
        rest: &[u8],
        final_: bool,
        out: &mut TokenBuf,
    ) -> Option<usize> {
        debug_assert!(
            self.held.is_empty(),
            "only a record header is looked at ahead of time"
        );
        if rest.len() < PAGE_BYTES {
            if !final_ {
                return None;
            }
            self.body = None;
            self.skip = PAGE_BYTES as u64;
            return Some(0);
        }
        self.body = None;
        self.push(Token::Body { addr }, out);
        Some(PAGE_BYTES)
    }

    /// Whatever the parser says comes next. `None`: it needs bytes that may be waited for.
    fn pass_parsed(
        &mut self,
        rest: &[u8],
        final_: bool,
        blocks: &mut BlockTable,
        out: &mut TokenBuf,
    ) -> Option<usize> {
        let step = if self.held.is_empty() {
            if let Parser::Main(sections) = &self.parser {
                let run = sections.run(rest, out);
                if run.bytes > 0 {
                    self.facts.bytes += run.bytes as u64;
                    self.facts.pages += run.pages;
                    self.facts.zero_pages += run.zero_pages;
                    return Some(run.bytes);
                }
            }
            self.ask(rest, blocks)
        } else {
            let mut head = self.held.clone();
            let more = rest.len().min(head.remaining_capacity());
            head.extend(rest[..more].iter().copied());
            self.ask(&head, blocks)
        };
        match step {
            None if final_ => {
                self.held.extend(rest.iter().copied());
                Some(self.push_raw(rest.len(), out))
            }
            None => None,
            Some(Step::Raw { head, skip }) => {
                self.skip = skip;
                Some(self.take_head(head, out))
            }
            Some(Step::Body { head, addr }) => {
                self.body = Some(addr);
                Some(self.take_head(head, out))
            }
            Some(Step::Zero { addr }) => {
                self.facts.zero_pages += 1;
                if !self.held.is_empty() {
                    return Some(self.take_head(ZERO_RECORD_BYTES, out));
                }
                self.push(Token::Zero { addr }, out);
                Some(ZERO_RECORD_BYTES)
            }
            Some(Step::Page { addr }) if self.held.is_empty() => {
                if rest.len() >= PAGE_RECORD_BYTES {
                    self.push(Token::Page { addr }, out);
                    self.facts.pages += 1;
                    return Some(PAGE_RECORD_BYTES);
                }
                if !final_ {
                    return None;
                }
                self.facts.pages += 1;
                self.skip = PAGE_RECORD_BYTES as u64;
                Some(0)
            }
            Some(Step::Page { addr }) => {
                // Part of the header is gone as raw bytes, so the rest of it goes the same way.
                self.facts.pages += 1;
                self.body = Some(addr);
                Some(self.take_head(PAGE_RECORD_BYTES - PAGE_BYTES, out))
            }
            Some(Step::Opaque) => {
                self.stop_parsing();
                Some(0)
            }
            Some(Step::Lost(reason)) => {
                self.facts.lost_sync = Some(reason);
                self.stop_parsing();
                Some(0)
            }
        }
    }

    /// Asks the parser what comes next, given all of `head` that is there.
    fn ask(&mut self, head: &[u8], blocks: &mut BlockTable) -> Option<Step> {
        let mut env = Env {
            blocks,
            facts: &mut self.facts,
        };
        let step = match &mut self.parser {
            Parser::Main(sections) => sections.step(head, &mut env),
            Parser::Multifd(multifd) => multifd.step(head, &mut env),
            Parser::ReturnPath => return_path::message(head, &mut env),
            Parser::Opaque => Some(Step::Raw {
                head: 0,
                skip: u64::MAX,
            }),
        };
        // No record needs a longer head; without this line such a record would stall the channel.
        if step.is_none() && head.len() >= MAX_HEAD_BYTES {
            return Some(Step::Lost(LostSync::UnknownSection));
        }
        step
    }

    fn stop_parsing(&mut self) {
        self.parser = Parser::Opaque;
        self.held.clear();
        self.facts.in_ram = false;
    }

    /// Passes `head` parsed bytes, of which some may have gone out already.
    fn take_head(&mut self, head: usize, out: &mut TokenBuf) -> usize {
        let from_held = head.min(self.held.len());
        self.held.drain(..from_held);
        let bytes = self.push_raw(head - from_held, out);
        if self.facts.ram_end_seen && self.facts.ram_end_bytes.is_none() {
            self.facts.ram_end_bytes = Some(self.facts.bytes);
        }
        bytes
    }

    fn push_raw(&mut self, bytes: usize, out: &mut TokenBuf) -> usize {
        debug_assert!(bytes as u64 <= MAX_RAW_STEP, "raw steps are bounded");
        out.push_raw(bytes as u32);
        self.facts.bytes += bytes as u64;
        self.facts.raw_bytes += bytes as u64;
        bytes
    }

    fn push(&mut self, token: Token, out: &mut TokenBuf) {
        self.facts.bytes += token.len() as u64;
        out.push(token);
    }
}
