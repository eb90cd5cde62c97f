//! Tells the compiler that `cfg(loom)` is a name it may meet: it is set by hand, through
//! `RUSTFLAGS`, when the lock-free parts are model-checked.

fn main() {
    println!("cargo::rustc-check-cfg=cfg(loom)");
    println!("cargo::rerun-if-changed=build.rs");
}
