//! The distribution's libdpdk as it is: nothing safe, nothing renamed.
//!
//! Comes in: C headers found by pkg-config at build time. Goes out: the functions, types and
//! constants that `dwcp-drivers` calls, and `dwcp_shim_*` for what the headers offer only inline.
//! Promises: empty without feature `link`; a layout that differs from the C compiler's fails to
//! compile or fails `tests/layout.rs`.

#[cfg(feature = "link")]
#[allow(
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    unsafe_op_in_unsafe_fn,
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    clippy::ptr_as_ptr
)]
mod bindings {
    include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
}

#[cfg(feature = "link")]
pub use bindings::*;
