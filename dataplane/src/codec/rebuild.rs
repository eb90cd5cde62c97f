//! The receiver's output: the batch's raw bytes, written front to back, and the history behind them.
//!
//! In: decoded operations. Out: bytes in the buffer, pages in the store. Promises: every write is
//! checked against the buffer; nothing is skipped, so a buffer that [`Rebuild::finish`] accepts holds
//! no byte of an earlier batch; the store changes in the order of the pages, and only in batches with
//! history.

use super::ops::{Class, Cursor, Op};
use super::simd::Simd;
use super::{DecodeError, PAGE_BYTES, Page, PageStore};
use crate::stream::{PAGE_RECORD_BYTES, PageAddr, ZERO_RECORD_BYTES};

pub(super) struct Rebuild<'a> {
    out: &'a mut [u8],
    at: usize,
    cursor: Cursor,
    store: &'a mut PageStore,
    history: bool,
    simd: Simd,
}

impl<'a> Rebuild<'a> {
    pub(super) const fn new(
        out: &'a mut [u8],
        store: &'a mut PageStore,
        history: bool,
        simd: Simd,
    ) -> Self {
        Self {
            out,
            at: 0,
            cursor: Cursor::new(),
            store,
            history,
            simd,
        }
    }

    /// The operation at hand is not well formed.
    pub(super) const fn malformed(&self) -> DecodeError {
        DecodeError::BadOperation { at: self.at }
    }

    const fn wrong_length(&self) -> DecodeError {
        DecodeError::WrongLength {
            raw_bytes: self.out.len(),
        }
    }

    /// Checks that the operation's output fits, before any of it is made.
    pub(super) fn check_fits(&self, op: &Op) -> Result<(), DecodeError> {
        let unit = match op.class {
            Class::Raw => 1,
            Class::Zero => ZERO_RECORD_BYTES,
            _ if op.header => PAGE_RECORD_BYTES,
            _ => PAGE_BYTES,
        };
        if op.count > ((self.out.len() - self.at) / unit) as u64 {
            return Err(self.wrong_length());
        }
        Ok(())
    }

    /// The address of the operation's page `nth`, which must be asked for in order.
    pub(super) fn place(&mut self, op: &Op, nth: u64) -> Result<PageAddr, DecodeError> {
        let jump = if nth == 0 { op.jump } else { None };
        self.cursor
            .place(jump)
            .ok_or(DecodeError::BadOperation { at: self.at })
    }

    /// Appends bytes.
    pub(super) fn bytes(&mut self, bytes: &[u8]) -> Result<(), DecodeError> {
        let error = self.wrong_length();
        let room = self.out[self.at..].get_mut(..bytes.len()).ok_or(error)?;
        room.copy_from_slice(bytes);
        self.at += bytes.len();
        Ok(())
    }

    /// Appends a ZERO record.
    pub(super) fn zero(&mut self, addr: PageAddr) -> Result<(), DecodeError> {
        self.bytes(&addr.zero_record())
    }

    /// Appends a page that `fill` writes; `fill` answers `None` if what it was to read is malformed.
    pub(super) fn page(
        &mut self,
        addr: PageAddr,
        header: bool,
        fill: impl FnOnce(&mut Page) -> Option<()>,
    ) -> Result<(), DecodeError> {
        self.page_from(addr, header, true, |_, page| Ok(fill(page)))
    }

    /// Appends a page from the history: `base` finds the stored page, which is copied, and `patch`
    /// changes it. Not stored again if `unchanged`.
    pub(super) fn page_from_history(
        &mut self,
        addr: PageAddr,
        header: bool,
        unchanged: bool,
        base: impl FnOnce(&PageStore) -> Option<&Page>,
        patch: impl FnOnce(&mut Page) -> Option<()>,
    ) -> Result<(), DecodeError> {
        let error = DecodeError::MissingPage { at: self.at };
        if !self.history {
            return Err(error);
        }
        self.page_from(addr, header, !unchanged, |store, page| {
            *page = *base(store).ok_or(error)?;
            Ok(patch(page))
        })
    }

    fn page_from(
        &mut self,
        addr: PageAddr,
        header: bool,
        store: bool,
        fill: impl FnOnce(&PageStore, &mut Page) -> Result<Option<()>, DecodeError>,
    ) -> Result<(), DecodeError> {
        if header {
            self.bytes(&addr.page_header())?;
        }
        let error = self.wrong_length();
        let room = self.out[self.at..]
            .first_chunk_mut::<PAGE_BYTES>()
            .ok_or(error)?;
        fill(self.store, room)?.ok_or(DecodeError::BadOperation { at: self.at })?;
        // The sender never stores a page of zeros, however it came.
        if self.history && store && !self.simd.is_zero(room) {
            self.store.insert(addr, room);
        }
        self.at += PAGE_BYTES;
        Ok(())
    }

    /// Accepts the batch if the whole buffer was written.
    pub(super) fn finish(self) -> Result<(), DecodeError> {
        if self.at == self.out.len() {
            Ok(())
        } else {
            Err(self.wrong_length())
        }
    }
}
