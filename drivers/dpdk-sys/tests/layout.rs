//! What bindgen read from the headers against what the C compiler makes of them.
#![cfg(feature = "link")]

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::mem::{offset_of, size_of};

use dpdk_sys::{
    dwcp_shim_layout, dwcp_shim_layout_count, rte_eth_conf, rte_eth_dev_info, rte_eth_rss_conf,
    rte_eth_rxmode, rte_eth_stats, rte_ether_addr, rte_mbuf,
};

fn as_c_sees_it() -> BTreeMap<String, usize> {
    // SAFETY: needed to read C constants; the shim defines as many entries as it counts, each with
    // a name that is a string literal, and nothing ever writes them.
    unsafe {
        std::slice::from_raw_parts(
            std::ptr::addr_of!(dwcp_shim_layout).cast::<dpdk_sys::dwcp_shim_layout>(),
            dwcp_shim_layout_count,
        )
        .iter()
        .map(|entry| {
            let item = CStr::from_ptr(entry.item).to_string_lossy();
            (item.into_owned(), entry.bytes)
        })
        .collect()
    }
}

#[test]
fn sizes_and_offsets_are_those_of_the_c_compiler() {
    let ours = [
        ("rte_mbuf", size_of::<rte_mbuf>()),
        ("rte_mbuf.buf_addr", offset_of!(rte_mbuf, buf_addr)),
        ("rte_mbuf.data_off", offset_of!(rte_mbuf, data_off)),
        ("rte_mbuf.nb_segs", offset_of!(rte_mbuf, nb_segs)),
        ("rte_mbuf.ol_flags", offset_of!(rte_mbuf, ol_flags)),
        ("rte_mbuf.pkt_len", offset_of!(rte_mbuf, pkt_len)),
        ("rte_mbuf.data_len", offset_of!(rte_mbuf, data_len)),
        ("rte_mbuf.buf_len", offset_of!(rte_mbuf, buf_len)),
        ("rte_eth_dev_info", size_of::<rte_eth_dev_info>()),
        (
            "rte_eth_dev_info.max_mtu",
            offset_of!(rte_eth_dev_info, max_mtu),
        ),
        (
            "rte_eth_dev_info.max_rx_queues",
            offset_of!(rte_eth_dev_info, max_rx_queues),
        ),
        (
            "rte_eth_dev_info.max_tx_queues",
            offset_of!(rte_eth_dev_info, max_tx_queues),
        ),
        (
            "rte_eth_dev_info.rx_offload_capa",
            offset_of!(rte_eth_dev_info, rx_offload_capa),
        ),
        (
            "rte_eth_dev_info.flow_type_rss_offloads",
            offset_of!(rte_eth_dev_info, flow_type_rss_offloads),
        ),
        ("rte_eth_conf", size_of::<rte_eth_conf>()),
        ("rte_eth_conf.rxmode", offset_of!(rte_eth_conf, rxmode)),
        (
            "rte_eth_conf.rx_adv_conf",
            offset_of!(rte_eth_conf, rx_adv_conf),
        ),
        ("rte_eth_rxmode", size_of::<rte_eth_rxmode>()),
        (
            "rte_eth_rxmode.mq_mode",
            offset_of!(rte_eth_rxmode, mq_mode),
        ),
        ("rte_eth_rxmode.mtu", offset_of!(rte_eth_rxmode, mtu)),
        (
            "rte_eth_rxmode.offloads",
            offset_of!(rte_eth_rxmode, offloads),
        ),
        ("rte_eth_rss_conf", size_of::<rte_eth_rss_conf>()),
        (
            "rte_eth_rss_conf.rss_hf",
            offset_of!(rte_eth_rss_conf, rss_hf),
        ),
        ("rte_eth_stats", size_of::<rte_eth_stats>()),
        ("rte_eth_stats.imissed", offset_of!(rte_eth_stats, imissed)),
        (
            "rte_eth_stats.rx_nombuf",
            offset_of!(rte_eth_stats, rx_nombuf),
        ),
        ("rte_ether_addr", size_of::<rte_ether_addr>()),
    ];
    let ours: BTreeMap<String, usize> = ours
        .iter()
        .map(|(item, bytes)| ((*item).to_owned(), *bytes))
        .collect();
    assert_eq!(ours, as_c_sees_it());
}
