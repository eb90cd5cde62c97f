//! With the feature `rdma`: asks the C compiler where `infiniband/verbs.h` and `rdma/rdma_cma.h` put
//! things, and writes that down as assertions for `src/rdma/layout.rs`. Without it: nothing but that
//! `cfg(fuzzing)`, which `cargo fuzz` sets, is a name that the compiler may meet.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(fuzzing)");
    #[cfg(feature = "rdma")]
    rdma::write_layout()?;
    Ok(())
}

#[cfg(feature = "rdma")]
mod rdma {
    use std::error::Error;
    use std::fmt::Write;
    use std::path::PathBuf;
    use std::process::Command;

    /// A C type, its name in Rust, and pairs of fields in C and in Rust.
    type Layout = (
        &'static str,
        &'static str,
        &'static [(&'static str, &'static str)],
    );

    /// What `rdma-sys` copies by hand, and what holds it.
    const LAYOUTS: &[Layout] = &[
        (
            "union ibv_gid",
            "ibv_gid",
            &[("raw", "raw"), ("global", "global")],
        ),
        (
            "struct ibv_async_event",
            "ibv_async_event",
            &[("element", "element"), ("event_type", "event_type")],
        ),
        (
            "struct ibv_wc",
            "ibv_wc",
            &[
                ("wr_id", "wr_id"),
                ("status", "status"),
                ("opcode", "opcode"),
                ("vendor_err", "vendor_err"),
                ("byte_len", "byte_len"),
                ("imm_data", "imm_data_invalidated_rkey_union"),
                ("qp_num", "qp_num"),
                ("src_qp", "src_qp"),
                ("wc_flags", "wc_flags"),
                ("pkey_index", "pkey_index"),
                ("slid", "slid"),
                ("sl", "sl"),
                ("dlid_path_bits", "dlid_path_bits"),
            ],
        ),
        (
            "struct ibv_global_route",
            "ibv_global_route",
            &[
                ("dgid", "dgid"),
                ("flow_label", "flow_label"),
                ("sgid_index", "sgid_index"),
                ("hop_limit", "hop_limit"),
                ("traffic_class", "traffic_class"),
            ],
        ),
        (
            "struct ibv_mw_bind_info",
            "ibv_mw_bind_info",
            &[("mr", "mr"), ("mw_access_flags", "mw_access_flags")],
        ),
        (
            "struct ibv_send_wr",
            "ibv_send_wr",
            &[
                ("wr_id", "wr_id"),
                ("next", "next"),
                ("sg_list", "sg_list"),
                ("num_sge", "num_sge"),
                ("opcode", "opcode"),
                ("send_flags", "send_flags"),
                ("imm_data", "imm_data_invalidated_rkey_union"),
                ("wr.rdma.remote_addr", "wr.rdma.remote_addr"),
                ("wr.rdma.rkey", "wr.rdma.rkey"),
                ("wr.atomic.rkey", "wr.atomic.rkey"),
                ("wr.ud.remote_qkey", "wr.ud.remote_qkey"),
                ("qp_type", "qp_type"),
                ("bind_mw", "bind_mw_tso_union"),
            ],
        ),
        ("struct ibv_ops_wr", "ibv_ops_wr", &[]),
        ("struct ibv_flow_spec", "ibv_flow_spec", &[]),
        (
            "struct rdma_ib_addr",
            "rdma_ib_addr",
            &[("sgid", "sgid"), ("dgid", "dgid"), ("pkey", "pkey")],
        ),
        (
            "struct rdma_addr",
            "rdma_addr",
            &[
                ("src_addr", "src_addr_union"),
                ("dst_addr", "dst_addr_union"),
                ("addr", "addr"),
            ],
        ),
        (
            "struct ibv_ah_attr",
            "ibv_ah_attr",
            &[("grh", "grh"), ("dlid", "dlid"), ("port_num", "port_num")],
        ),
        (
            "struct rdma_ud_param",
            "rdma_ud_param",
            &[
                ("ah_attr", "ah_attr"),
                ("qp_num", "qp_num"),
                ("qkey", "qkey"),
            ],
        ),
        (
            "struct rdma_cm_event",
            "rdma_cm_event",
            &[
                ("id", "id"),
                ("listen_id", "listen_id"),
                ("event", "event"),
                ("status", "status"),
                ("param", "param"),
            ],
        ),
        (
            "struct rdma_cm_id",
            "rdma_cm_id",
            &[("verbs", "verbs"), ("qp", "qp"), ("route", "route")],
        ),
    ];

    /// Compiles a program that prints the assertions, runs it, and keeps what it said.
    pub fn write_layout() -> Result<(), Box<dyn Error>> {
        let mut source = String::from(
            "#include <stddef.h>\n#include <stdio.h>\n\
             #include <infiniband/verbs.h>\n#include <rdma/rdma_cma.h>\nint main(void) {\n",
        );
        for (c_type, rust_type, fields) in LAYOUTS {
            writeln!(
                source,
                "printf(\"size!({rust_type}, %zu);\\n\", sizeof({c_type}));"
            )?;
            for (c_field, rust_field) in *fields {
                writeln!(
                    source,
                    "printf(\"place!({rust_type}, {rust_field}, %zu);\\n\", \
                     offsetof({c_type}, {c_field}));"
                )?;
            }
        }
        source.push_str("return 0;\n}\n");
        let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
        let (file, program) = (out.join("rdma_layout.c"), out.join("rdma_layout"));
        std::fs::write(&file, source)?;
        let compiled = cc::Build::new()
            .get_compiler()
            .to_command()
            .arg(&file)
            .arg("-o")
            .arg(&program)
            .status()?;
        if !compiled.success() {
            return Err(
                "verbs' headers do not compile: install libibverbs-dev librdmacm-dev".into(),
            );
        }
        let said = Command::new(&program).output()?;
        if !said.status.success() {
            return Err(
                "the layout program failed: build on the kind of machine that runs it".into(),
            );
        }
        std::fs::write(out.join("rdma_layout.rs"), said.stdout)?;
        Ok(())
    }
}
