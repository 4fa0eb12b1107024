// SPDX-License-Identifier: GPL-2.0-only
/*
 * knetstat - the options of TCP and UDP sockets, one row each, in
 * /proc/net/{tcp,tcp6,udp,udp6}stat.
 *
 * Rules:
 *
 * 1. One seq_file record is one hash bucket, printed under that bucket's lock.
 *    A socket never changes its bucket while it is hashed, so a reader that
 *    comes back for the next piece finds each live socket exactly once,
 *    whatever came and went in between, and finding its place costs nothing.
 * 2. A bucket's lock is taken and dropped inside ->show(). seq_file grows its
 *    buffer and copies to user space outside of it, so nothing sleeps under a
 *    lock, and no lock is held when ->show() returns.
 * 3. The lock keeps every entry of its bucket alive: no reference is taken.
 *    Fields are read as the kernel's own /proc/net/tcp reads them, without the
 *    socket's lock.
 * 4. No kernel version is named here. See compat.h.
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/jiffies.h>
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/sched.h>
#include <linux/seq_file.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <net/inet_connection_sock.h>
#include <net/inet_hashtables.h>
#include <net/inet_timewait_sock.h>
#include <net/ip.h>
#include <net/ipv6.h>
#include <net/net_namespace.h>
#include <net/request_sock.h>
#include <net/sock.h>
#include <net/tcp.h>
#include <net/tcp_states.h>
#include <net/udp.h>

#include "compat.h"

/*
 * The longest row has two addresses of 45 characters and every option, each
 * as wide as its type allows where a second is 24 jiffies: 481 in all.
 */
#define ROW_MAX		512
#define ADDR_COLUMNS	23
#define ADDR6_MAX	45

/* For literals: the length is a constant where this is inlined. */
static __always_inline char *put(char *p, const char *literal)
{
	size_t len = strlen(literal);

	memcpy(p, literal, len);
	return p + len;
}

static char *put_u64(char *p, u64 v)
{
	char digits[20];
	int n = 0;
	u32 low;

	if (v < 10) {
		*p++ = '0' + v;
		return p;
	}
	while (v > U32_MAX) {
		u32 rem;

		v = div_u64_rem(v, 10, &rem);
		digits[n++] = '0' + rem;
	}
	/* The rest fits 32 bits, where no division is called for. */
	for (low = v; low; low /= 10)
		digits[n++] = '0' + low % 10;
	while (n)
		*p++ = digits[--n];
	return p;
}

static char *put_s64(char *p, s64 v)
{
	if (v < 0) {
		*p++ = '-';
		v = -v;
	}
	return put_u64(p, v);
}

/* As "%6d ". */
static char *put_queue(char *p, int v)
{
	char digits[12];
	int len = put_s64(digits, v) - digits;
	int pad;

	for (pad = len; pad < 6; pad++)
		*p++ = ' ';
	memcpy(p, digits, len);
	p += len;
	*p++ = ' ';
	return p;
}

/*
 * Milliseconds: the seconds and three more digits, since the longest timeouts
 * are more than 2^64 of them. They are never negative.
 */
static char *put_timeo(char *p, long timeo)
{
	unsigned int ms = timeo % HZ * MSEC_PER_SEC / HZ;

	if (timeo < HZ) {
		p = put_u64(p, ms);
	} else {
		p = put_u64(p, timeo / HZ);
		*p++ = '0' + ms / 100;
		*p++ = '0' + ms / 10 % 10;
		*p++ = '0' + ms % 10;
	}
	return put(p, "ms");
}

static char *put_port_padded(char *p, const char *column, u16 port)
{
	*p++ = ':';
	if (port)
		p = put_u64(p, port);
	else
		*p++ = '*';
	while (p < column + ADDR_COLUMNS)
		*p++ = ' ';
	*p++ = ' ';
	return p;
}

static char *put_addr4(char *p, __be32 addr, u16 port)
{
	const u8 *octet = (const u8 *)&addr;
	const char *column = p;

	p = put_u64(p, octet[0]);
	*p++ = '.';
	p = put_u64(p, octet[1]);
	*p++ = '.';
	p = put_u64(p, octet[2]);
	*p++ = '.';
	p = put_u64(p, octet[3]);
	return put_port_padded(p, column, port);
}

static char *put_addr6(char *p, const struct in6_addr *addr, u16 port)
{
	const char *column = p;

	p += scnprintf(p, ADDR6_MAX + 1, "%pI6c", addr);
	return put_port_padded(p, column, port);
}

/* Full sockets, request sockets and time-wait sockets share these fields. */
static char *put_addrs(char *p, const struct sock *sk, u16 sport, u16 dport)
{
#if IS_ENABLED(CONFIG_IPV6)
	if (sk->sk_family == AF_INET6) {
		p = put_addr6(p, &sk->sk_v6_rcv_saddr, sport);
		return put_addr6(p, &sk->sk_v6_daddr, dport);
	}
#endif
	p = put_addr4(p, sk->sk_rcv_saddr, sport);
	return put_addr4(p, sk->sk_daddr, dport);
}

static const char *tcp_state_name(int state)
{
	static const char names[][5] = {
		[TCP_ESTABLISHED]	= "ESTB",
		[TCP_SYN_SENT]		= "SYNS",
		[TCP_SYN_RECV]		= "SYNR",
		[TCP_FIN_WAIT1]		= "FNW1",
		[TCP_FIN_WAIT2]		= "FNW2",
		[TCP_TIME_WAIT]		= "TIMW",
		[TCP_CLOSE]		= "CLSD",
		[TCP_CLOSE_WAIT]	= "CLSW",
		[TCP_LAST_ACK]		= "LACK",
		[TCP_LISTEN]		= "LSTN",
		[TCP_CLOSING]		= "CLSG",
		[TCP_NEW_SYN_RECV]	= "SYNR",
	};

	if (state <= 0 || state >= ARRAY_SIZE(names))
		return "NONE";
	return names[state];
}

static char *put_tcp_state(char *p, int state)
{
	memcpy(p, tcp_state_name(state), 4);
	p[4] = ' ';
	return p + 5;
}

/* What holds an established connection up, in four columns. */
static char *put_tcp_diag(char *p, const struct tcp_sock *tp, int state)
{
	bool we_closed, peer_closed;

	if (state != TCP_ESTABLISHED)
		return put(p, "     ");

	we_closed = !READ_ONCE(tp->rcv_wnd);
	peer_closed = !READ_ONCE(tp->snd_wnd);
	if (we_closed && peer_closed)
		return put(p, ">|<  ");
	if (we_closed)
		return put(p, "|<   ");
	if (peer_closed)
		return put(p, ">|   ");
	if (READ_ONCE(tp->packets_out) &&
	    (s32)(tcp_jiffies32 - READ_ONCE(tp->rcv_tstamp)) > HZ)
		return put(p, ">#   ");
	return put(p, "     ");
}

/* What the application asked for: the kernel doubles it, for its overhead. */
static char *put_buffers(char *p, const struct sock *sk)
{
	if (sk->sk_userlocks & SOCK_RCVBUF_LOCK) {
		p = put(p, ",SO_RCVBUF=");
		p = put_s64(p, READ_ONCE(sk->sk_rcvbuf) / 2);
	}
	if (sk->sk_userlocks & SOCK_SNDBUF_LOCK) {
		p = put(p, ",SO_SNDBUF=");
		p = put_s64(p, READ_ONCE(sk->sk_sndbuf) / 2);
	}
	return p;
}

static char *put_timeouts(char *p, const struct sock *sk)
{
	long rcvtimeo = READ_ONCE(sk->sk_rcvtimeo);
	long sndtimeo = READ_ONCE(sk->sk_sndtimeo);

	if (rcvtimeo != MAX_SCHEDULE_TIMEOUT) {
		p = put(p, ",SO_RCVTIMEO=");
		p = put_timeo(p, rcvtimeo);
	}
	if (sndtimeo != MAX_SCHEDULE_TIMEOUT) {
		p = put(p, ",SO_SNDTIMEO=");
		p = put_timeo(p, sndtimeo);
	}
	if (sock_flag(sk, SOCK_LINGER)) {
		p = put(p, ",SO_LINGER=");
		p = put_u64(p, READ_ONCE(sk->sk_lingertime) / HZ);
		*p++ = 's';
	}
	return p;
}

static char *put_reuse(char *p, const struct sock *sk)
{
	p = put(p, "SO_REUSEADDR=");
	p = put_u64(p, sk->sk_reuse);
	p = put(p, ",SO_REUSEPORT=");
	*p++ = '0' + sk->sk_reuseport;
	return p;
}

/* Only what the socket sets itself: 0 stands for the sysctl's value. */
static char *put_keepalive(char *p, const struct sock *sk,
			   const struct tcp_sock *tp)
{
	unsigned int idle = READ_ONCE(tp->keepalive_time);
	unsigned int count = READ_ONCE(tp->keepalive_probes);
	unsigned int interval = READ_ONCE(tp->keepalive_intvl);

	p = put(p, ",SO_KEEPALIVE=");
	*p++ = '0' + sock_flag(sk, SOCK_KEEPOPEN);
	if (idle) {
		p = put(p, ",TCP_KEEPIDLE=");
		p = put_u64(p, idle / HZ);
	}
	if (count) {
		p = put(p, ",TCP_KEEPCNT=");
		p = put_u64(p, count);
	}
	if (interval) {
		p = put(p, ",TCP_KEEPINTVL=");
		p = put_u64(p, interval / HZ);
	}
	return p;
}

static char *put_tcp_options(char *p, struct sock *sk, int state)
{
	const struct inet_connection_sock *icsk = inet_csk(sk);
	const struct request_sock_queue *queue = &icsk->icsk_accept_queue;
	const struct tcp_sock *tp = tcp_sk(sk);
	u32 user_timeout = READ_ONCE(icsk->icsk_user_timeout);

	p = put_reuse(p, sk);
	p = put_keepalive(p, sk, tp);
	if (user_timeout) {
		p = put(p, ",TCP_USER_TIMEOUT=");
		p = put_u64(p, user_timeout);
	}
	p = put_buffers(p, sk);
	p = put_timeouts(p, sk);
	p = put(p, ",TCP_NODELAY=");
	*p++ = tp->nonagle & TCP_NAGLE_OFF ? '1' : '0';
	if (state == TCP_LISTEN) {
		p = put(p, ",TCP_FASTOPEN=");
		p = put_s64(p, READ_ONCE(queue->fastopenq.max_qlen));
	}
	p = put(p, ",TCP_DEFER_ACCEPT=");
	return put_u64(p, READ_ONCE(queue->rskq_defer_accept));
}

static char *put_tcp_sock(char *p, struct sock *sk)
{
	const struct tcp_sock *tp = tcp_sk(sk);
	const struct inet_sock *inet = inet_sk(sk);
	int state = inet_sk_state_load(sk);
	int recv, send;

	if (state == TCP_LISTEN) {
		recv = READ_ONCE(sk->sk_ack_backlog);
		send = 0;
	} else {
		/* The socket is not locked: the difference may be negative. */
		recv = max_t(int, READ_ONCE(tp->rcv_nxt) -
				  READ_ONCE(tp->copied_seq), 0);
		send = READ_ONCE(tp->write_seq) - READ_ONCE(tp->snd_una);
	}
	p = put_queue(p, recv);
	p = put_queue(p, send);
	p = put_addrs(p, sk, ntohs(inet->inet_sport), ntohs(inet->inet_dport));
	p = put_tcp_state(p, state);
	p = put_tcp_diag(p, tp, state);
	return put_tcp_options(p, sk, state);
}

/*
 * The socket is gone and this small one stands in for it, also in FIN_WAIT2:
 * tw_substate tells, and no option is left to print.
 */
static char *put_tcp_timewait(char *p, struct sock *sk)
{
	const struct inet_timewait_sock *tw = inet_twsk(sk);

	p = put_queue(p, 0);
	p = put_queue(p, 0);
	p = put_addrs(p, sk, ntohs(tw->tw_sport), ntohs(tw->tw_dport));
	return put_tcp_state(p, READ_ONCE(tw->tw_substate));
}

static char *put_tcp_request(char *p, struct sock *sk)
{
	const struct inet_request_sock *ireq = inet_rsk(inet_reqsk(sk));

	p = put_queue(p, 0);
	p = put_queue(p, 0);
	p = put_addrs(p, sk, ireq->ir_num, ntohs(ireq->ir_rmt_port));
	return put_tcp_state(p, TCP_NEW_SYN_RECV);
}

static char *put_tcp_row(char *p, struct sock *sk)
{
	switch (READ_ONCE(sk->sk_state)) {
	case TCP_TIME_WAIT:
		p = put_tcp_timewait(p, sk);
		break;
	case TCP_NEW_SYN_RECV:
		p = put_tcp_request(p, sk);
		break;
	default:
		p = put_tcp_sock(p, sk);
	}
	*p++ = '\n';
	return p;
}

static char *put_udp_row(char *p, struct sock *sk)
{
	const struct inet_sock *inet = inet_sk(sk);

	p = put_queue(p, udp_rqueue_get(sk));
	p = put_queue(p, sk_wmem_alloc_get(sk));
	p = put_addrs(p, sk, ntohs(inet->inet_sport), ntohs(inet->inet_dport));
	p = put_reuse(p, sk);
	p = put_buffers(p, sk);
	p = put_timeouts(p, sk);
	p = put(p, ",SO_BROADCAST=");
	*p++ = '0' + sock_flag(sk, SOCK_BROADCAST);
	*p++ = '\n';
	return p;
}

/*
 * A row goes straight into the reader's buffer where the widest one fits, and
 * else by way of the stack, so that the buffer is filled to its last byte. A
 * bucket that overflows the buffer is shown again from its beginning, in a
 * larger one: its lock is not held for rows that nobody will see.
 */
static void show_row(struct seq_file *seq, struct sock *sk,
		     char *(*put_row)(char *p, struct sock *sk))
{
	char spare[ROW_MAX];
	char *row;

	if (seq_get_buf(seq, &row) >= ROW_MAX)
		seq_commit(seq, put_row(row, sk) - row);
	else
		seq_write(seq, spare, put_row(spare, sk) - spare);
}

static bool row_wanted(struct seq_file *seq, const struct sock *sk, int family)
{
	return sk->sk_family == family &&
	       net_eq(sock_net(sk), seq_file_net(seq));
}

/*
 * Position 0 is the header. Then comes one position for each bucket of the
 * listening table, and one for each of the established table. The iterator's
 * value is its position: no state is kept between two reads.
 */
static void *tcp_seek(struct seq_file *seq, loff_t *pos)
{
	struct inet_hashinfo *hinfo = knetstat_hashinfo(seq_file_net(seq));
	loff_t listening = knetstat_lhash_size(hinfo);
	loff_t end = 1 + listening + hinfo->ehash_mask + 1;

	if (*pos <= listening)
		return pos;
	for (; *pos < end; ++*pos) {
		if (!hlist_nulls_empty(&hinfo->ehash[*pos - 1 - listening].chain))
			return pos;
		cond_resched();
	}
	return NULL;
}

static void *tcp_start(struct seq_file *seq, loff_t *pos)
{
	return tcp_seek(seq, pos);
}

static void *tcp_next(struct seq_file *seq, void *v, loff_t *pos)
{
	++*pos;
	return tcp_seek(seq, pos);
}

static void tcp_show_listening(struct seq_file *seq,
			       struct inet_listen_hashbucket *bucket,
			       int family)
{
	struct hlist_nulls_node *node;
	struct sock *sk;

	if (hlist_nulls_empty(&bucket->nulls_head))
		return;
	spin_lock(&bucket->lock);
	sk_nulls_for_each(sk, node, &bucket->nulls_head) {
		if (!row_wanted(seq, sk, family))
			continue;
		show_row(seq, sk, put_tcp_row);
		if (seq_has_overflowed(seq))
			break;
	}
	spin_unlock(&bucket->lock);
}

static void tcp_show_established(struct seq_file *seq,
				 struct inet_hashinfo *hinfo, unsigned int i,
				 int family)
{
	spinlock_t *lock = inet_ehash_lockp(hinfo, i);
	struct hlist_nulls_node *node;
	struct sock *sk;

	spin_lock_bh(lock);
	sk_nulls_for_each(sk, node, &hinfo->ehash[i].chain) {
		if (!row_wanted(seq, sk, family))
			continue;
		show_row(seq, sk, put_tcp_row);
		if (seq_has_overflowed(seq))
			break;
	}
	spin_unlock_bh(lock);
}

static int tcp_show(struct seq_file *seq, loff_t pos, int family)
{
	struct inet_hashinfo *hinfo = knetstat_hashinfo(seq_file_net(seq));
	unsigned int listening = knetstat_lhash_size(hinfo);

	if (!pos)
		seq_puts(seq,
			 "Recv-Q Send-Q Local Address           Foreign Address         Stat Diag Options\n");
	else if (pos <= listening)
		tcp_show_listening(seq, knetstat_lhash_bucket(hinfo, pos - 1),
				   family);
	else
		tcp_show_established(seq, hinfo, pos - 1 - listening, family);
	return 0;
}

static int tcp4_show(struct seq_file *seq, void *v)
{
	return tcp_show(seq, *(loff_t *)v, AF_INET);
}

static int tcp6_show(struct seq_file *seq, void *v)
{
	return tcp_show(seq, *(loff_t *)v, AF_INET6);
}

/* Position 0 is the header, then one for each bucket of the table by port. */
static void *udp_seek(struct seq_file *seq, loff_t *pos)
{
	struct udp_table *table = knetstat_udp_table(seq_file_net(seq));

	if (!*pos)
		return pos;
	for (; *pos <= (loff_t)table->mask + 1; ++*pos) {
		if (!hlist_empty(&table->hash[*pos - 1].head))
			return pos;
		cond_resched();
	}
	return NULL;
}

static void *udp_start(struct seq_file *seq, loff_t *pos)
{
	return udp_seek(seq, pos);
}

static void *udp_next(struct seq_file *seq, void *v, loff_t *pos)
{
	++*pos;
	return udp_seek(seq, pos);
}

static int udp_show(struct seq_file *seq, loff_t pos, int family)
{
	struct udp_table *table = knetstat_udp_table(seq_file_net(seq));
	struct udp_hslot *slot;
	struct sock *sk;

	if (!pos) {
		seq_puts(seq,
			 "Recv-Q Send-Q Local Address           Foreign Address         Options\n");
		return 0;
	}
	slot = &table->hash[pos - 1];
	spin_lock_bh(&slot->lock);
	sk_for_each(sk, &slot->head) {
		if (!row_wanted(seq, sk, family))
			continue;
		show_row(seq, sk, put_udp_row);
		if (seq_has_overflowed(seq))
			break;
	}
	spin_unlock_bh(&slot->lock);
	return 0;
}

static int udp4_show(struct seq_file *seq, void *v)
{
	return udp_show(seq, *(loff_t *)v, AF_INET);
}

static int udp6_show(struct seq_file *seq, void *v)
{
	return udp_show(seq, *(loff_t *)v, AF_INET6);
}

static void bucket_stop(struct seq_file *seq, void *v)
{
}

static const struct seq_operations knetstat_tcp4_ops = {
	.start	= tcp_start,
	.next	= tcp_next,
	.stop	= bucket_stop,
	.show	= tcp4_show,
};

static const struct seq_operations knetstat_tcp6_ops = {
	.start	= tcp_start,
	.next	= tcp_next,
	.stop	= bucket_stop,
	.show	= tcp6_show,
};

static const struct seq_operations knetstat_udp4_ops = {
	.start	= udp_start,
	.next	= udp_next,
	.stop	= bucket_stop,
	.show	= udp4_show,
};

static const struct seq_operations knetstat_udp6_ops = {
	.start	= udp_start,
	.next	= udp_next,
	.stop	= bucket_stop,
	.show	= udp6_show,
};

static const struct knetstat_file {
	const char *name;
	const struct seq_operations *ops;
} knetstat_files[] = {
	{ "tcpstat",	&knetstat_tcp4_ops },
	{ "tcp6stat",	&knetstat_tcp6_ops },
	{ "udpstat",	&knetstat_udp4_ops },
	{ "udp6stat",	&knetstat_udp6_ops },
};

static void knetstat_remove_files(struct net *net, int count)
{
	while (count--)
		remove_proc_entry(knetstat_files[count].name, net->proc_net);
}

static int __net_init knetstat_net_init(struct net *net)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(knetstat_files); i++) {
		const struct knetstat_file *file = &knetstat_files[i];

		if (!proc_create_net_data(file->name, 0444, net->proc_net,
					  file->ops,
					  sizeof(struct seq_net_private),
					  NULL)) {
			knetstat_remove_files(net, i);
			return -ENOMEM;
		}
	}
	return 0;
}

static void __net_exit knetstat_net_exit(struct net *net)
{
	knetstat_remove_files(net, ARRAY_SIZE(knetstat_files));
}

static struct pernet_operations knetstat_net_ops = {
	.init = knetstat_net_init,
	.exit = knetstat_net_exit,
};

static int __init knetstat_init(void)
{
	return register_pernet_subsys(&knetstat_net_ops);
}

/* Removing a file waits for the readers inside and closes it for the others. */
static void __exit knetstat_exit(void)
{
	unregister_pernet_subsys(&knetstat_net_ops);
}

module_init(knetstat_init);
module_exit(knetstat_exit);

MODULE_DESCRIPTION("Options of TCP and UDP sockets in /proc/net/*stat");
MODULE_AUTHOR("The knetstatd developers");
MODULE_LICENSE("GPL");
MODULE_VERSION("1.0.0");
