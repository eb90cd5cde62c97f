//! The receiver's output: the batch's raw bytes, written front to back, and the history behind them.
//!
//! In: decoded operations. Out: bytes in the buffer, pages in the store. Promises: every write is
//! checked against the buffer; nothing is skipped, so a buffer that [`Rebuild::finish`] accepts holds
//! no byte of an earlier batch; the store changes in the order of the pages, and only in batches with
//! history.

use super::ops::{Class, Cursor, Op};
use super::simd::Simd;
use super::{DecodeError, PAGE_BYTES, Page, PageStore, SlotId};
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

    /// Room for the next page, behind its header if it has one.
    fn room(&mut self, addr: PageAddr, header: bool) -> Result<&mut Page, DecodeError> {
        if header {
            self.bytes(&addr.page_header())?;
        }
        let error = self.wrong_length();
        let room = self.out[self.at..].first_chunk_mut::<PAGE_BYTES>();
        room.ok_or(error)
    }

    /// Appends a page of zeros. The sender does not store it.
    pub(super) fn zero_page(&mut self, addr: PageAddr, header: bool) -> Result<(), DecodeError> {
        self.room(addr, header)?.fill(0);
        self.at += PAGE_BYTES;
        Ok(())
    }

    /// Appends a page that `fill` writes; `fill` answers `None` if what it was to read is malformed.
    pub(super) fn page(
        &mut self,
        addr: PageAddr,
        header: bool,
        fill: impl FnOnce(&mut Page) -> Option<()>,
    ) -> Result<(), DecodeError> {
        let malformed = self.malformed();
        fill(self.room(addr, header)?).ok_or(malformed)?;
        self.store_page(addr);
        Ok(())
    }

    /// Stores the page that was just written, and passes it.
    fn store_page(&mut self, addr: PageAddr) {
        if self.history
            && let Some(page) = self.out[self.at..].first_chunk::<PAGE_BYTES>()
            // The sender never stores a page of zeros, however it came.
            && !self.simd.is_zero(page)
        {
            self.store.insert_past_caches(self.simd, addr, page);
        }
        self.at += PAGE_BYTES;
    }

    fn missing(&self) -> DecodeError {
        DecodeError::MissingPage { at: self.at }
    }

    /// Appends the stored page of the address.
    pub(super) fn same_page(&mut self, addr: PageAddr, header: bool) -> Result<(), DecodeError> {
        let missing = self.missing();
        let slot = self.own(addr).ok_or(missing)?;
        self.copy(addr, header, slot)?;
        self.at += PAGE_BYTES;
        Ok(())
    }

    /// Appends the page in a slot, which becomes the stored page of the address.
    pub(super) fn copied_page(
        &mut self,
        addr: PageAddr,
        header: bool,
        slot: SlotId,
    ) -> Result<(), DecodeError> {
        self.copy(addr, header, slot)?;
        // Copies tend to come from nearby, so what they overwrite is in the caches already.
        if let Some(page) = self.out[self.at..].first_chunk::<PAGE_BYTES>()
            && !self.simd.is_zero(page)
        {
            self.store.insert(addr, page);
        }
        self.at += PAGE_BYTES;
        Ok(())
    }

    /// Appends the stored page of the address as `patch` changes it, there and here; `patch` answers `None` if
    /// what it was to read is malformed.
    pub(super) fn patched_page(
        &mut self,
        addr: PageAddr,
        header: bool,
        patch: impl FnOnce(&mut Page) -> Option<()>,
    ) -> Result<(), DecodeError> {
        let (missing, malformed) = (self.missing(), self.malformed());
        let slot = self.own(addr);
        let old = slot.and_then(|slot| Some((slot, self.store.page_mut(slot)?)));
        let (slot, page) = old.ok_or(missing)?;
        patch(page).ok_or(malformed)?;
        self.copy(addr, header, slot)?;
        self.at += PAGE_BYTES;
        Ok(())
    }

    /// The slot of the address, in a batch that may ask.
    fn own(&mut self, addr: PageAddr) -> Option<SlotId> {
        self.store.find(addr).filter(|_| self.history)
    }

    /// Writes the page in a slot, in a batch that may ask.
    fn copy(&mut self, addr: PageAddr, header: bool, slot: SlotId) -> Result<(), DecodeError> {
        let missing = self.missing();
        if !self.history {
            return Err(missing);
        }
        self.room(addr, header)?;
        let page = self.store.page(slot).ok_or(missing)?;
        self.out[self.at..self.at + PAGE_BYTES].copy_from_slice(page);
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
