//! Calls of the libraries as their own benchmarks make them: one call a batch, on the pages of it, with a context
//! that is kept. In: batches. Out: what a call took. Promise: the bytes are those that the encoder compresses.

use std::ffi::{c_int, c_void};
use std::ptr::NonNull;

use anyhow::{Context as _, ensure};
use dwcp_dataplane::codec::Method;
use dwcp_dataplane::stream::PAGE_BYTES;

use crate::cores::processor_s;
use crate::encode::batches::Batch;

/// See the module.
pub(super) struct Plain {
    method: Method,
    level: i32,
    context: Option<NonNull<zstd_sys::ZSTD_CCtx>>,
    pages: Vec<u8>,
    out: Vec<u8>,
}

impl Plain {
    pub(super) fn new(method: Method, level: i32) -> anyhow::Result<Self> {
        let context = if method == Method::Zstd {
            // SAFETY: a C function that takes nothing; `drop` gives back what it makes.
            let made = unsafe { zstd_sys::ZSTD_createCCtx() };
            Some(NonNull::new(made).context("zstd has no memory")?)
        } else {
            None
        };
        Ok(Self {
            method,
            level,
            context,
            pages: Vec::with_capacity(1 << 20),
            out: vec![0; 2 << 20],
        })
    }

    /// Is there anything to call?
    pub(super) const fn is_some(&self) -> bool {
        matches!(self.method, Method::Lz4 | Method::Zstd)
    }

    /// Seconds that compressing the pages of a batch takes.
    pub(super) fn time(&mut self, batch: &Batch) -> anyhow::Result<f64> {
        if !self.is_some() {
            return Ok(0.0);
        }
        self.pages.clear();
        let mut at = 0;
        for token in &batch.tokens {
            at += token.len();
            self.pages
                .extend_from_slice(&batch.raw[at - PAGE_BYTES..at]);
        }
        let begun = processor_s();
        let written = self.call()?;
        let took = processor_s() - begun;
        ensure!(written > 0, "nothing was compressed");
        Ok(took)
    }

    fn call(&mut self) -> anyhow::Result<usize> {
        let Some(context) = self.context else {
            let (from, to) = (
                c_int::try_from(self.pages.len())?,
                c_int::try_from(self.out.len())?,
            );
            // SAFETY: a C function with raw pointers; both slices are as long as it is told, and it keeps neither.
            let written = unsafe {
                lz4_sys::LZ4_compress_fast(
                    self.pages.as_ptr().cast(),
                    self.out.as_mut_ptr().cast(),
                    from,
                    to,
                    1,
                )
            };
            return Ok(usize::try_from(written)?);
        };
        // SAFETY: as above; the context is live and used by nobody else.
        let written = unsafe {
            zstd_sys::ZSTD_compressCCtx(
                context.as_ptr(),
                self.out.as_mut_ptr().cast::<c_void>(),
                self.out.len(),
                self.pages.as_ptr().cast::<c_void>(),
                self.pages.len(),
                c_int::from(self.level),
            )
        };
        // SAFETY: a C function over an integer.
        let failed = unsafe { zstd_sys::ZSTD_isError(written) != 0 };
        ensure!(!failed, "zstd does not compress");
        Ok(written)
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        if let Some(context) = self.context {
            // SAFETY: made by `new`, and nobody uses it any more.
            unsafe { zstd_sys::ZSTD_freeCCtx(context.as_ptr()) };
        }
    }
}
