//! LZ4 blocks: the only file that calls lz4.
//!
//! In: bytes, and a buffer that bounds the output. Out: the bytes written. Promises: nothing is
//! allocated (the compressor's 16 KiB of state are on the stack), nothing is written outside the
//! buffer, and a block decodes to exactly the length that was expected or is refused.

use std::ffi::c_int;

/// Compresses `src` into `dst`. `None`: it does not fit.
pub(super) fn compress(src: &[u8], dst: &mut [u8]) -> Option<usize> {
    let src_len = c_int::try_from(src.len()).ok()?;
    let dst_len = c_int::try_from(dst.len()).unwrap_or(c_int::MAX);
    // SAFETY: a C function with raw pointers. Both pointers come from slices at least as long as the
    // lengths passed with them, the slices do not overlap, and the function keeps neither.
    let written = unsafe {
        lz4_sys::LZ4_compress_fast(
            src.as_ptr().cast(),
            dst.as_mut_ptr().cast(),
            src_len,
            dst_len,
            1,
        )
    };
    usize::try_from(written).ok().filter(|&written| written > 0)
}

/// Decompresses the block `src`, which must fill `dst` exactly. `None`: it does not.
pub(super) fn decompress(src: &[u8], dst: &mut [u8]) -> Option<()> {
    let src_len = c_int::try_from(src.len()).ok()?;
    let dst_len = c_int::try_from(dst.len()).ok()?;
    // SAFETY: as in `compress`; this is lz4's decoder for untrusted input, which reads and writes
    // only inside the lengths given.
    let written = unsafe {
        lz4_sys::LZ4_decompress_safe(
            src.as_ptr().cast(),
            dst.as_mut_ptr().cast(),
            src_len,
            dst_len,
        )
    };
    (written == dst_len).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comes_back_at_the_exact_length_only() {
        let src = [5; 1000];
        let mut packed = [0; 100];
        let len = compress(&src, &mut packed).unwrap();
        let mut back = [0; 1000];
        assert_eq!(decompress(&packed[..len], &mut back), Some(()));
        assert_eq!(back, src);
        assert_eq!(decompress(&packed[..len], &mut [0; 999]), None);
        assert_eq!(decompress(&packed[..len], &mut [0; 1001]), None);
        assert_eq!(decompress(&packed[..len - 1], &mut back), None);
        assert_eq!(compress(&src, &mut [0; 3]), None);
    }
}
