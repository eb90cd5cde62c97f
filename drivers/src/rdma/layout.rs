//! The C compiler's word on the types that `rdma-sys` copies by hand.
//!
//! Comes in: sizes and offsets that `build.rs` asked the compiler of this build for. Goes out:
//! nothing. Promises: where one of them differs, this crate does not build.

use std::mem::{offset_of, size_of};

macro_rules! size {
    ($type:ident, $bytes:literal) => {
        const _: () = assert!(
            size_of::<rdma_sys::$type>() == $bytes,
            concat!("rdma-sys has a wrong size of ", stringify!($type))
        );
    };
}

macro_rules! place {
    ($type:ident, $($field:ident).+, $bytes:literal) => {
        const _: () = assert!(
            offset_of!(rdma_sys::$type, $($field).+) == $bytes,
            concat!("rdma-sys has a field in a wrong place in ", stringify!($type))
        );
    };
}

include!(concat!(env!("OUT_DIR"), "/rdma_layout.rs"));
