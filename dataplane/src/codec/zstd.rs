//! zstd frames: the only file that calls zstd.
//!
//! In: bytes, and a buffer that bounds the output. Out: the bytes written. Promises: the contexts live
//! in memory taken once, at `new`, so a batch allocates nothing (a context on the heap would change its
//! size with the data); a frame refers to nothing but itself and the bytes given as its context;  a frame decodes to exactly the length
//! that was expected or is refused, and nothing is written outside the buffer.

use std::ffi::{c_int, c_void};
use std::ptr::NonNull;

/// A context of 1 MiB and as much source lie within this window, whatever the level.
const CONTEXT_WINDOW_LOG: c_int = 21;

/// No table has more entries than this, whatever the level: with more, the levels from 9 on take two to four times
/// the memory, and a session has several compressors.
const TABLE_LOG_MAX: u32 = 20;

/// zstd has other parameters for sources up to each of these sizes, a context counted in.
const SIZES: [u64; 4] = [16 << 10, 128 << 10, 256 << 10, 1 << CONTEXT_WINDOW_LOG];

/// What a level means for a source, with its context, of `size` bytes.
fn parameters(level: i32, size: u64) -> zstd_sys::ZSTD_compressionParameters {
    // SAFETY: a C function over integers; marked unsafe only because it is foreign.
    let mut parameters = unsafe { zstd_sys::ZSTD_getCParams(c_int::from(level), size, 0) };
    parameters.hashLog = parameters.hashLog.min(TABLE_LOG_MAX);
    parameters.chainLog = parameters.chainLog.min(TABLE_LOG_MAX);
    parameters
}

/// What a context takes for sources, with their contexts, of at most `size` bytes.
fn context_bytes(level: i32, size: u64) -> usize {
    let mut parameters = parameters(level, size);
    parameters.windowLog = CONTEXT_WINDOW_LOG as u32;
    // SAFETY: as above.
    unsafe { zstd_sys::ZSTD_estimateCCtxSize_usingCParams(parameters) }
}

/// What a compressor for levels up to `level_max` takes; an error's code if zstd refuses the level.
pub(super) fn compressor_bytes(level_max: i32) -> usize {
    let levels = 1..=level_max;
    let each = levels.flat_map(|level| SIZES.map(|size| context_bytes(level, size)));
    each.max().unwrap_or(usize::MAX)
}

/// What a decompressor takes.
pub(super) fn decompressor_bytes() -> usize {
    // SAFETY: a C function over integers.
    unsafe { zstd_sys::ZSTD_estimateDCtxSize() }
}

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
        let bytes = compressor_bytes(level_max);
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

    /// What it takes.
    #[cfg(test)]
    pub(super) fn taken_bytes(&self) -> usize {
        // SAFETY: a C function that reads a live context.
        unsafe { zstd_sys::ZSTD_sizeof_CCtx(self.context.as_ptr()) }
    }

    /// Compresses `src` into `dst` as one frame that may refer to `context`, which is fastest right before
    /// `src`. `None`: it does not fit.
    pub(super) fn compress(
        &mut self,
        level: i32,
        context: &[u8],
        src: &[u8],
        dst: &mut [u8],
    ) -> Option<usize> {
        let set = |parameter, value| {
            // SAFETY: C functions on a live context that is used by nobody else.
            let code = unsafe {
                zstd_sys::ZSTD_CCtx_setParameter(
                    self.context.as_ptr(),
                    parameter,
                    c_int::from(value),
                )
            };
            (!is_error(code)).then_some(())
        };
        // SAFETY: as above; takes back what an earlier frame was given.
        unsafe {
            zstd_sys::ZSTD_CCtx_reset(
                self.context.as_ptr(),
                zstd_sys::ZSTD_ResetDirective::ZSTD_reset_session_and_parameters,
            )
        };
        set(zstd_sys::ZSTD_cParameter::ZSTD_c_compressionLevel, level)?;
        let bounded = parameters(level, (context.len() + src.len()) as u64);
        // Where the bound does not bite zstd chooses as ever.
        if bounded.hashLog == TABLE_LOG_MAX {
            let log = TABLE_LOG_MAX.cast_signed();
            set(zstd_sys::ZSTD_cParameter::ZSTD_c_hashLog, log)?;
        }
        if bounded.chainLog == TABLE_LOG_MAX {
            let log = TABLE_LOG_MAX.cast_signed();
            set(zstd_sys::ZSTD_cParameter::ZSTD_c_chainLog, log)?;
        }
        if !context.is_empty() {
            set(
                zstd_sys::ZSTD_cParameter::ZSTD_c_windowLog,
                CONTEXT_WINDOW_LOG,
            )?;
            // SAFETY: a C function with a raw pointer. It keeps the pointer until the end of the next
            // frame, which is made below while `context` is borrowed, or until the next reset.
            let code = unsafe {
                zstd_sys::ZSTD_CCtx_refPrefix(
                    self.context.as_ptr(),
                    context.as_ptr().cast::<c_void>(),
                    context.len(),
                )
            };
            (!is_error(code)).then_some(())?;
        }
        // SAFETY: a C function with raw pointers. The context is live and used by nobody else, the
        // slices cover the lengths given, `dst` overlaps neither other, and nothing is kept after the
        // call that the next one does not reset first.
        let written = unsafe {
            zstd_sys::ZSTD_compress2(
                self.context.as_ptr(),
                dst.as_mut_ptr().cast::<c_void>(),
                dst.len(),
                src.as_ptr().cast::<c_void>(),
                src.len(),
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
        let mut workspace = workspace(decompressor_bytes());
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

    /// What it takes.
    #[cfg(test)]
    pub(super) fn taken_bytes(&self) -> usize {
        // SAFETY: a C function that reads a live context.
        unsafe { zstd_sys::ZSTD_sizeof_DCtx(self.context.as_ptr()) }
    }

    /// Decompresses `src`, which may refer to `context` and must fill `dst` exactly. `None`: it does not.
    pub(super) fn decompress(&mut self, context: &[u8], src: &[u8], dst: &mut [u8]) -> Option<()> {
        // SAFETY: as in `Compressor::compress`; the decoder takes untrusted input and stays inside
        // the lengths given.
        let written = unsafe {
            zstd_sys::ZSTD_decompress_usingDict(
                self.context.as_ptr(),
                dst.as_mut_ptr().cast::<c_void>(),
                dst.len(),
                src.as_ptr().cast::<c_void>(),
                src.len(),
                context.as_ptr().cast::<c_void>(),
                context.len(),
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
        let mut compressor = Compressor::new(12).unwrap();
        let mut decompressor = Decompressor::new().unwrap();
        let context: Vec<u8> = (0..1 << 20).map(|i: u32| (i / 11 % 251) as u8).collect();
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
        let mut packed = vec![0; src.len() + 100];
        let mut back = vec![0; src.len()];
        for round in 0..3 {
            for level in [1, 12, 9, 3, 6] {
                for len in [10, 300, 20_000, 140_000, 300_000, 1 << 20] {
                    let context = &context[..[0, 5_000, 1 << 20][(round + len) % 3]];
                    let written = compressor
                        .compress(level, context, &src[..len], &mut packed)
                        .unwrap_or_else(|| panic!("round {round} level {level} length {len}"));
                    back[..len].fill(0);
                    decompressor
                        .decompress(context, &packed[..written], &mut back[..len])
                        .unwrap();
                    assert!(back[..len] == src[..len]);
                    assert!(
                        decompressor
                            .decompress(context, &packed[..written], &mut back[..len - 1])
                            .is_none()
                    );
                    assert!(
                        decompressor
                            .decompress(context, &packed[..written - 1], &mut back[..len])
                            .is_none()
                    );
                }
            }
        }
        assert!(
            compressor
                .compress(1, &[], &src, &mut packed[..100])
                .is_none()
        );
        assert!(compressor.compress(1, &[], &src, &mut packed).is_some());
    }
}
