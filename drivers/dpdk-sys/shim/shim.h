/* What DPDK offers only as static inline functions or macros, as symbols.
 * One call per burst, so that the call costs nothing per packet. */
#ifndef DWCP_DPDK_SHIM_H
#define DWCP_DPDK_SHIM_H

#include <stddef.h>
#include <stdint.h>

struct rte_mbuf;
struct rte_mempool;

/* Receives at most `room` packets; the caller owns those returned. */
uint16_t dwcp_shim_rx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **into, uint16_t room);

/* Hands packets to the device; it owns the first ones, as many as it returns. */
uint16_t dwcp_shim_tx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **from, uint16_t count);

/* Takes `count` packets from the pool, reset to empty; 0, or negative when it has not as many. */
int dwcp_shim_mbuf_alloc_bulk(struct rte_mempool *pool, struct rte_mbuf **into, unsigned int count);

/* Whether the port's link is up; 0 too when the device cannot say. */
int dwcp_shim_link_is_up(uint16_t port);

/* Has `call` called whenever a driver unregisters a callback for a descriptor, before that is done.
 * memif's driver does so between marking its rings as gone and unmapping them. */
void dwcp_shim_before_unregister(void (*call)(void));

/* The calling thread's rte_errno. */
int dwcp_shim_errno(void);

/* Whether the calling thread has an lcore number, and with it caches of its own in mempools. */
int dwcp_shim_thread_is_registered(void);

/* What the device's receive flags say about the UDP checksum of a packet. */
extern const uint64_t dwcp_shim_rx_l4_checksum_mask;
extern const uint64_t dwcp_shim_rx_l4_checksum_good;

/* Constants of rte_ethdev.h whose macros bindgen cannot evaluate. */
extern const uint64_t dwcp_shim_rx_offload_checksum;
extern const uint64_t dwcp_shim_rss_udp;

/* One size or offset as the C compiler sees it. */
struct dwcp_shim_layout {
	const char *item;
	size_t bytes;
};

extern const struct dwcp_shim_layout dwcp_shim_layout[];
extern const size_t dwcp_shim_layout_count;

#endif
