#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* RTLD_NEXT */
#endif
#include <dlfcn.h>
#include <errno.h>

#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_interrupts.h>
#include <rte_lcore.h>
#include <rte_mbuf.h>
#include <rte_mempool.h>

#include "shim.h"

uint16_t
dwcp_shim_rx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **into, uint16_t room)
{
	return rte_eth_rx_burst(port, queue, into, room);
}

uint16_t
dwcp_shim_tx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **from, uint16_t count)
{
	return rte_eth_tx_burst(port, queue, from, count);
}

int
dwcp_shim_mbuf_alloc_bulk(struct rte_mempool *pool, struct rte_mbuf **into, unsigned int count)
{
	return rte_pktmbuf_alloc_bulk(pool, into, count);
}

int
dwcp_shim_link_is_up(uint16_t port)
{
	struct rte_eth_link link = { 0 };

	return rte_eth_link_get_nowait(port, &link) == 0 && link.link_status == RTE_ETH_LINK_UP;
}

static void (*before_unregister)(void);

void
dwcp_shim_before_unregister(void (*call)(void))
{
	__atomic_store_n(&before_unregister, call, __ATOMIC_RELEASE);
}

/* Stands in front of EAL's function of this name: the drivers are plug-ins, and the dynamic linker
 * finds the program's own symbols first. */
int
rte_intr_callback_unregister(const struct rte_intr_handle *handle, rte_intr_callback_fn function,
			     void *argument)
{
	int (*real)(const struct rte_intr_handle *, rte_intr_callback_fn, void *);
	void (*call)(void) = __atomic_load_n(&before_unregister, __ATOMIC_ACQUIRE);

	*(void **)&real = dlsym(RTLD_NEXT, "rte_intr_callback_unregister");
	if (call != NULL)
		call();
	return real != NULL ? real(handle, function, argument) : -ENOSYS;
}

int
dwcp_shim_errno(void)
{
	return rte_errno;
}

int
dwcp_shim_thread_is_registered(void)
{
	return rte_lcore_id() != LCORE_ID_ANY;
}

const uint64_t dwcp_shim_rx_l4_checksum_mask = RTE_MBUF_F_RX_L4_CKSUM_MASK;
const uint64_t dwcp_shim_rx_l4_checksum_good = RTE_MBUF_F_RX_L4_CKSUM_GOOD;
const uint64_t dwcp_shim_rx_offload_checksum =
	RTE_ETH_RX_OFFLOAD_IPV4_CKSUM | RTE_ETH_RX_OFFLOAD_UDP_CKSUM;
const uint64_t dwcp_shim_rss_udp =
	RTE_ETH_RSS_NONFRAG_IPV4_UDP | RTE_ETH_RSS_NONFRAG_IPV6_UDP;

#define SIZE(type) { #type, sizeof(struct type) }
#define OFFSET(type, field) { #type "." #field, offsetof(struct type, field) }

const struct dwcp_shim_layout dwcp_shim_layout[] = {
	SIZE(rte_mbuf),
	OFFSET(rte_mbuf, buf_addr),
	OFFSET(rte_mbuf, data_off),
	OFFSET(rte_mbuf, nb_segs),
	OFFSET(rte_mbuf, ol_flags),
	OFFSET(rte_mbuf, pkt_len),
	OFFSET(rte_mbuf, data_len),
	OFFSET(rte_mbuf, buf_len),
	SIZE(rte_eth_dev_info),
	OFFSET(rte_eth_dev_info, max_mtu),
	OFFSET(rte_eth_dev_info, max_rx_queues),
	OFFSET(rte_eth_dev_info, max_tx_queues),
	OFFSET(rte_eth_dev_info, rx_offload_capa),
	OFFSET(rte_eth_dev_info, flow_type_rss_offloads),
	SIZE(rte_eth_conf),
	OFFSET(rte_eth_conf, rxmode),
	OFFSET(rte_eth_conf, rx_adv_conf),
	SIZE(rte_eth_rxmode),
	OFFSET(rte_eth_rxmode, mq_mode),
	OFFSET(rte_eth_rxmode, mtu),
	OFFSET(rte_eth_rxmode, offloads),
	SIZE(rte_eth_rss_conf),
	OFFSET(rte_eth_rss_conf, rss_hf),
	SIZE(rte_eth_stats),
	OFFSET(rte_eth_stats, imissed),
	OFFSET(rte_eth_stats, rx_nombuf),
	SIZE(rte_ether_addr),
};

const size_t dwcp_shim_layout_count = sizeof(dwcp_shim_layout) / sizeof(dwcp_shim_layout[0]);
