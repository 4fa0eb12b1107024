/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What knetstat.c needs to compile on kernels older than the newest.
 *
 * knetstat.c knows no kernel version. Each block below says in which version
 * the kernel changed and what; drop a block when the floor passes it.
 */
#ifndef KNETSTAT_COMPAT_H
#define KNETSTAT_COMPAT_H

#include <linux/version.h>
#include <net/inet_hashtables.h>
#include <net/net_namespace.h>
#include <net/udp.h>

#if LINUX_VERSION_CODE < KERNEL_VERSION(5, 10, 0)
#error "knetstat needs Linux 5.10 or newer"
#endif

/*
 * 5.17: pde_data() replaces PDE_DATA(). Some distributions carried the new
 * name back; that is why the old one is probed, not the version.
 */
#include <linux/proc_fs.h>
#ifdef KNETSTAT_HAVE_PDE_DATA_UPPER
#define pde_data(inode) PDE_DATA(inode)
#endif

/*
 * 5.19: listening_hash, hashed by port alone and of fixed size, is retired;
 * listeners are found in lhash2, hashed by address and port. The kernel's
 * own /proc/net/tcp walked the first before, and walks the second since. The
 * bucket is the same structure.
 */
#if LINUX_VERSION_CODE < KERNEL_VERSION(5, 19, 0)
static inline unsigned int knetstat_listen_buckets(struct inet_hashinfo *hinfo)
{
	return INET_LHTABLE_SIZE;
}

static inline struct inet_listen_hashbucket *
knetstat_listen_bucket(struct inet_hashinfo *hinfo, unsigned int i)
{
	return &hinfo->listening_hash[i];
}
#else
static inline unsigned int knetstat_listen_buckets(struct inet_hashinfo *hinfo)
{
	return hinfo->lhash2_mask + 1;
}

static inline struct inet_listen_hashbucket *
knetstat_listen_bucket(struct inet_hashinfo *hinfo, unsigned int i)
{
	return &hinfo->lhash2[i];
}
#endif

/*
 * 5.18 to 6.0: tcp_death_row is a pointer in struct netns_ipv4; before and
 * after it is a member.
 */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(5, 18, 0) && \
	LINUX_VERSION_CODE < KERNEL_VERSION(6, 1, 0)
#define knetstat_hashinfo(net) ((net)->ipv4.tcp_death_row->hashinfo)
#else
#define knetstat_hashinfo(net) ((net)->ipv4.tcp_death_row.hashinfo)
#endif

/*
 * 6.2: a network namespace may have an UDP table of its own, and each points
 * to the one in use. Before there is one table, and it is exported.
 */
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 2, 0)
#define knetstat_udp_table(net) (&udp_table)
#else
#define knetstat_udp_table(net) ((net)->ipv4.udp_table)
#endif

#endif /* KNETSTAT_COMPAT_H */
