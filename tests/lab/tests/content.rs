//! What the guest's memory is worth to a compressor; figures about ratio rest on this.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use dwcp_lab::content::{Model, PAGE_BYTES};

/// Percent of its size that `input` has after zstd at level 3.
fn zstd_percent(input: &[u8]) -> f64 {
    let mut output = vec![0; input.len() + 1024];
    // SAFETY: needed because zstd is a C library; sound because both pointers come with the
    // lengths of live buffers that do not overlap.
    let length = unsafe {
        zstd_sys::ZSTD_compress(
            output.as_mut_ptr().cast(),
            output.len(),
            input.as_ptr().cast(),
            input.len(),
            3,
        )
    };
    assert!(length <= output.len(), "zstd failed");
    length as f64 * 100.0 / input.len() as f64
}

#[test]
fn page_wise_zstd_leaves_about_two_fifths() {
    let model = Model::new(7);
    let pages: Vec<[u8; PAGE_BYTES]> = (0..16_384_u64)
        .map(|page| {
            let mut bytes = [0; PAGE_BYTES];
            model.render(page, (page % 9) as u32, &mut bytes);
            bytes
        })
        .collect();
    let page_wise = pages.iter().map(|p| zstd_percent(p)).sum::<f64>() / pages.len() as f64;
    let blocks: Vec<f64> = pages
        .chunks(64)
        .map(|chunk| zstd_percent(chunk.as_flattened()))
        .collect();
    let block_wise = blocks.iter().sum::<f64>() / blocks.len() as f64;
    println!("zstd-3 leaves {page_wise:.1} % page by page, {block_wise:.1} % in 256 KiB blocks");
    assert!((35.0..45.0).contains(&page_wise), "{page_wise} %");
    assert!(
        block_wise < page_wise && block_wise > 20.0,
        "{block_wise} %"
    );
}
