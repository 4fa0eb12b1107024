/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What knetstat.c needs in order to compile on kernels older than the newest.
 *
 * knetstat.c knows no kernel version. Each block below says in which version
 * the kernel changed and what; drop a block when the floor has passed it.
 */
#ifndef KNETSTAT_COMPAT_H
#define KNETSTAT_COMPAT_H

#include <linux/build_bug.h>
#include <linux/version.h>
#include <net/inet_hashtables.h>
#include <net/net_namespace.h>
#include <net/udp.h>

#if LINUX_VERSION_CODE < KERNEL_VERSION(5, 10, 0)
#error "knetstat needs Linux 5.10 or newer"
#endif

/*
 * 5.19, cae3873c5b3a ("net: inet: Retire port only listening_hash"):
 * listeners are found in lhash2, hashed by address and port, and no longer in
 * listening_hash, hashed by port alone and of fixed size. The kernel's own
 * /proc/net/tcp walks whichever is there; the bucket is the same structure.
 * The stable series 5.15 has it too, from 5.15.140 on; no other does.
 * Where a vendor's kernel has taken it back or over, nothing compiles: in
 * lhash2 listeners were linked by another member as long as both were there,
 * and the 32 buckets of listening_hash were inside of the structure.
 */
#if LINUX_VERSION_CODE < KERNEL_VERSION(5, 15, 140) || \
	(LINUX_VERSION_CODE >= KERNEL_VERSION(5, 16, 0) && \
	 LINUX_VERSION_CODE < KERNEL_VERSION(5, 19, 0))
static inline unsigned int knetstat_lhash_size(struct inet_hashinfo *hinfo)
{
	return INET_LHTABLE_SIZE;
}

static inline struct inet_listen_hashbucket *
knetstat_lhash_bucket(struct inet_hashinfo *hinfo, unsigned int i)
{
	return &hinfo->listening_hash[i];
}
#else
static_assert(sizeof(struct inet_hashinfo) <
	      32 * sizeof(struct inet_listen_hashbucket));

static inline unsigned int knetstat_lhash_size(struct inet_hashinfo *hinfo)
{
	return hinfo->lhash2_mask + 1;
}

static inline struct inet_listen_hashbucket *
knetstat_lhash_bucket(struct inet_hashinfo *hinfo, unsigned int i)
{
	return &hinfo->lhash2[i];
}
#endif

/*
 * 5.18 to 6.0: tcp_death_row is a pointer in struct netns_ipv4; before and
 * after, it is a member. fbb8295248e1 ("tcp: allocate tcp_death_row outside of
 * struct netns_ipv4") and e9bd0cca09d1 ("tcp: Don't allocate tcp_death_row
 * outside of struct netns_ipv4.") made it one and the other.
 */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(5, 18, 0) && \
	LINUX_VERSION_CODE < KERNEL_VERSION(6, 1, 0)
static inline struct inet_hashinfo *knetstat_hashinfo(struct net *net)
{
	return net->ipv4.tcp_death_row->hashinfo;
}
#else
static inline struct inet_hashinfo *knetstat_hashinfo(struct net *net)
{
	return net->ipv4.tcp_death_row.hashinfo;
}
#endif

/*
 * 6.2, ba6aac151677 ("udp: Access &udp_table via net."): a network namespace
 * may have a UDP table of its own, and each points to the one that it uses.
 * Before, there is one table, and it is exported.
 */
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 2, 0)
static inline struct udp_table *knetstat_udp_table(struct net *net)
{
	return &udp_table;
}
#else
static inline struct udp_table *knetstat_udp_table(struct net *net)
{
	return net->ipv4.udp_table;
}
#endif

#endif /* KNETSTAT_COMPAT_H */
