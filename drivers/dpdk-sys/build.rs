//! Finds libdpdk by pkg-config, binds the functions named below and compiles the shim.
//!
//! Comes in: feature `link`, pkg-config's view of libdpdk, `src/bindings.h`. Goes out:
//! `bindings.rs`, the shim's archive, and the few libraries to link. Without `link` nothing is done.

#[cfg(not(feature = "link"))]
fn main() {}

#[cfg(feature = "link")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    link::main()
}

#[cfg(feature = "link")]
mod link {
    use std::path::PathBuf;
    use std::process::Command;

    type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

    /// The oldest release that was tried. Up to 23.11 an mbuf's fields lie as this crate uses them;
    /// a later release that moved them does not compile.
    const OLDEST: &str = "22.11";

    /// Only what has a caller: DPDK's headers hold thousands of items.
    const FUNCTIONS: &[&str] = &[
        "rte_eal_init",
        "rte_eal_hotplug_add",
        "rte_eal_hotplug_remove",
        "rte_eth_allmulticast_enable",
        "rte_eth_dev_adjust_nb_rx_tx_desc",
        "rte_eth_dev_close",
        "rte_eth_dev_configure",
        "rte_eth_dev_get_port_by_name",
        "rte_eth_dev_info_get",
        "rte_eth_dev_set_mtu",
        "rte_eth_dev_socket_id",
        "rte_eth_dev_start",
        "rte_eth_dev_stop",
        "rte_eth_macaddr_get",
        "rte_eth_rx_queue_setup",
        "rte_eth_stats_get",
        "rte_eth_tx_queue_setup",
        "rte_mempool_avail_count",
        "rte_mempool_free",
        "rte_pktmbuf_free_bulk",
        "rte_pktmbuf_pool_create",
        "rte_strerror",
        "rte_thread_register",
        "rte_thread_unregister",
        "dwcp_shim_.*",
    ];
    const CONSTANTS: &[&str] = &["RTE_PKTMBUF_HEADROOM", "dwcp_shim_.*"];
    /// Of libdpdk's fifty libraries, those that hold the functions above. Drivers are plug-ins that
    /// EAL loads from the distribution's folder when it starts.
    const LIBRARIES: &[&str] = &["rte_ethdev", "rte_mbuf", "rte_mempool", "rte_eal"];

    pub fn main() -> Outcome<()> {
        for file in ["src/bindings.h", "shim/shim.c", "shim/shim.h", "build.rs"] {
            println!("cargo:rerun-if-changed={file}");
        }
        println!("cargo:rerun-if-env-changed=PKG_CONFIG_PATH");
        pkg_config(&[&format!("--atleast-version={OLDEST}")])?;
        let flags = pkg_config(&["--cflags"])?;
        let out = PathBuf::from(std::env::var("OUT_DIR")?);

        let mut shim = cc::Build::new();
        shim.file("shim/shim.c");
        for flag in &flags {
            shim.flag(flag);
        }
        shim.try_compile("dwcp_dpdk_shim")?;

        let mut bindings = bindgen::Builder::default()
            .header("src/bindings.h")
            .clang_args(&flags)
            .use_core()
            .layout_tests(true)
            .derive_debug(false)
            .derive_default(false)
            .generate_comments(false)
            .prepend_enum_name(false)
            .formatter(bindgen::Formatter::None);
        for name in FUNCTIONS {
            bindings = bindings.allowlist_function(name);
        }
        for name in CONSTANTS {
            bindings = bindings.allowlist_var(name);
        }
        bindings
            .generate()?
            .write_to_file(out.join("bindings.rs"))?;

        for path in pkg_config(&["--libs-only-L"])? {
            if let Some(path) = path.strip_prefix("-L") {
                println!("cargo:rustc-link-search=native={path}");
            }
        }
        for library in LIBRARIES {
            println!("cargo:rustc-link-lib=dylib={library}");
        }
        Ok(())
    }

    fn pkg_config(arguments: &[&str]) -> Outcome<Vec<String>> {
        let cure = format!("install libdpdk {OLDEST} or later (Debian: libdpdk-dev, pkg-config)");
        let answer = Command::new("pkg-config")
            .args(arguments)
            .args(["--print-errors", "libdpdk"])
            .output()
            .map_err(|cause| format!("cannot run pkg-config: {cause}; {cure}"))?;
        if !answer.status.success() {
            let said = String::from_utf8_lossy(&answer.stderr);
            return Err(format!("pkg-config does not find libdpdk: {said}; {cure}").into());
        }
        let text = String::from_utf8(answer.stdout)?;
        Ok(text.split_whitespace().map(str::to_owned).collect())
    }
}
