//! zstd frames: the only file that calls zstd.
//!
//! In: bytes, and a buffer that bounds the output. Out: the bytes written. Promises: the contexts live
//! in memory taken once, at `new`, so a batch allocates nothing (a context on the heap would change its
//! size with the data); the window is no larger than the source; a frame decodes to exactly the length
//! that was expected or is refused, and nothing is written outside the buffer.

use std::ffi::{c_int, c_void};
use std::ptr::NonNull;

/// Memory for a context, aligned as zstd asks.
fn workspace(bytes: usize) -> Box<[u64]> {
    vec![0; bytes.div_ceil(8)].into_boxed_slice()
}

/// A compressor for levels up to the one given at `new`.
pub(super) struct Compressor {
    context: NonNull<zstd_sys::ZSTD_CCtx>,
    /// The memory that `context` lies in.
    _workspace: Box<[u64]>,
}

// SAFETY: the raw pointer keeps the compiler from seeing it, but the context is memory owned by this
// value alone, has no tie to a thread, and is used through `&mut self` only.
unsafe impl Send for Compressor {}

impl Compressor {
    /// `None`: zstd refuses the level.
    pub(super) fn new(level_max: i32) -> Option<Self> {
        // SAFETY: a C function over integers; marked unsafe only because it is foreign.
        let bytes = unsafe { zstd_sys::ZSTD_estimateCCtxSize(level_max) };
        if is_error(bytes) {
            return None;
        }
        let mut workspace = workspace(bytes);
        // SAFETY: a C function that builds a context inside the memory given. The memory is 8-byte
        // aligned, at least `bytes` long, does not move (it is boxed) and lives as long as the context.
        let context = unsafe {
            zstd_sys::ZSTD_initStaticCCtx(
                workspace.as_mut_ptr().cast::<c_void>(),
                size_of_val(&*workspace),
            )
        };
        Some(Self {
            context: NonNull::new(context)?,
            _workspace: workspace,
        })
    }

    /// Compresses `src` into `dst` as one frame. `None`: it does not fit.
    pub(super) fn compress(&mut self, level: i32, src: &[u8], dst: &mut [u8]) -> Option<usize> {
        // SAFETY: a C function with raw pointers. The context is live and used by nobody else, the
        // slices cover the lengths given and do not overlap, and nothing is kept after the call.
        let written = unsafe {
            zstd_sys::ZSTD_compressCCtx(
                self.context.as_ptr(),
                dst.as_mut_ptr().cast::<c_void>(),
                dst.len(),
                src.as_ptr().cast::<c_void>(),
                src.len(),
                c_int::from(level),
            )
        };
        (!is_error(written)).then_some(written)
    }
}

/// A decompressor.
pub(super) struct Decompressor {
    context: NonNull<zstd_sys::ZSTD_DCtx>,
    /// The memory that `context` lies in.
    _workspace: Box<[u64]>,
}

// SAFETY: as for `Compressor`.
unsafe impl Send for Decompressor {}

impl Decompressor {
    /// `None`: zstd refuses its own estimate, which does not happen with a sound library.
    pub(super) fn new() -> Option<Self> {
        // SAFETY: a C function over integers.
        let bytes = unsafe { zstd_sys::ZSTD_estimateDCtxSize() };
        let mut workspace = workspace(bytes);
        // SAFETY: as in `Compressor::new`.
        let context = unsafe {
            zstd_sys::ZSTD_initStaticDCtx(
                workspace.as_mut_ptr().cast::<c_void>(),
                size_of_val(&*workspace),
            )
        };
        Some(Self {
            context: NonNull::new(context)?,
            _workspace: workspace,
        })
    }

    /// Decompresses `src`, which must fill `dst` exactly. `None`: it does not.
    pub(super) fn decompress(&mut self, src: &[u8], dst: &mut [u8]) -> Option<()> {
        // SAFETY: as in `Compressor::compress`; the decoder takes untrusted input and stays inside
        // the lengths given.
        let written = unsafe {
            zstd_sys::ZSTD_decompressDCtx(
                self.context.as_ptr(),
                dst.as_mut_ptr().cast::<c_void>(),
                dst.len(),
                src.as_ptr().cast::<c_void>(),
                src.len(),
            )
        };
        (!is_error(written) && written == dst.len()).then_some(())
    }
}

fn is_error(code: usize) -> bool {
    // SAFETY: a C function over an integer.
    unsafe { zstd_sys::ZSTD_isError(code) != 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_and_size_fits_the_workspace() {
        let mut compressor = Compressor::new(9).unwrap();
        let mut decompressor = Decompressor::new().unwrap();
        let mut word = 1u64;
        let src: Vec<u8> = (0..1 << 20)
            .map(|i| {
                word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                if i / 5000 % 2 == 0 {
                    (word >> 60) as u8
                } else {
                    (i % 17) as u8
                }
            })
            .collect();
        let mut packed = vec![0; src.len()];
        let mut back = vec![0; src.len()];
        for round in 0..3 {
            for level in [1, 9, 3, 6] {
                for len in [10, 300, 20_000, 140_000, 300_000, 1 << 20] {
                    let written = compressor
                        .compress(level, &src[..len], &mut packed)
                        .unwrap_or_else(|| panic!("round {round} level {level} length {len}"));
                    back[..len].fill(0);
                    decompressor
                        .decompress(&packed[..written], &mut back[..len])
                        .unwrap();
                    assert!(back[..len] == src[..len]);
                    assert!(
                        decompressor
                            .decompress(&packed[..written], &mut back[..len - 1])
                            .is_none()
                    );
                    assert!(
                        decompressor
                            .decompress(&packed[..written - 1], &mut back[..len])
                            .is_none()
                    );
                }
            }
        }
        assert!(compressor.compress(1, &src, &mut packed[..100]).is_none());
        assert!(compressor.compress(1, &src, &mut packed).is_some());
    }
}
