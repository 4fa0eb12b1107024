// SPDX-License-Identifier: GPL-2.0-or-later
/* A third witness: what sock_diag(7) says of each socket, held against the rows. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "zoo.h"

/* Of the kernel's tcp_states.h; and the timer of a closed socket's placeholder, which older inet_diag.h do not name. */
#define SYN_RECV 3
#define LISTEN 10
#define TIMEWAIT_TIMER 3

static void put_end(char *out, size_t size, int family, const __be32 *address, __be16 port)
{
	char text[INET6_ADDRSTRLEN], number[8], column[80];

	inet_ntop(family, address, text, sizeof(text));
	snprintf(number, sizeof(number), port ? "%u" : "*", ntohs(port));
	snprintf(column, sizeof(column), "%s:%s", text, number);
	snprintf(out, size, "%-23s", column);
}

static char *row_of(const struct inet_diag_msg *m, bool tcp)
{
	char left[80], right[80], row[256];
	/* For a listener, wqueue is the limit of its backlog. */
	int send = tcp && m->idiag_state == LISTEN ? 0 : (int)m->idiag_wqueue;
	/* Only a connection that is opened fast is more than a request in SYN_RECV, and the zoo has none. */
	bool ends = tcp && (m->idiag_timer == TIMEWAIT_TIMER || m->idiag_state == SYN_RECV);

	put_end(left, sizeof(left), m->idiag_family, m->id.idiag_src, m->id.idiag_sport);
	put_end(right, sizeof(right), m->idiag_family, m->id.idiag_dst, m->id.idiag_dport);
	snprintf(row, sizeof(row), "%6d %6d %s %s %s%s%s", (int)m->idiag_rqueue, send, left, right,
		 tcp ? state_names[m->idiag_state] : "", tcp ? " " : "", ends ? "$" : "");
	return strdup(row);
}

/* The row of each socket as far as it is known (see row_is), sorted later; NULL where the kernel has no sock_diag for them. */
static char **dump(int family, int protocol, size_t *count)
{
	struct {
		struct nlmsghdr header;
		struct inet_diag_req_v2 request;
	} ask = {
		.header = { sizeof(ask), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, 0, 0 },
		.request = { .sdiag_family = family, .sdiag_protocol = protocol, .idiag_states = -1 },
	};
	static char buffer[1 << 16] __attribute__((aligned(8)));
	int fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_SOCK_DIAG);
	size_t room = 1024;
	char **rows = malloc(room * sizeof(char *));

	*count = 0;
	if (fd < 0 || send(fd, &ask, sizeof(ask), 0) < 0)
		die("NETLINK_SOCK_DIAG");
	for (;;) {
		int got = recv(fd, buffer, sizeof(buffer), 0);
		struct nlmsghdr *h = (void *)buffer;

		if (got <= 0)
			die("sock_diag");
		for (; NLMSG_OK(h, got); h = NLMSG_NEXT(h, got)) {
			if (h->nlmsg_type == NLMSG_DONE || h->nlmsg_type == NLMSG_ERROR) {
				close(fd);
				if (h->nlmsg_type == NLMSG_DONE)
					return rows;
				free(rows);
				return NULL;
			}
			if (*count == room)
				rows = realloc(rows, (room *= 2) * sizeof(char *));
			rows[(*count)++] = row_of(NLMSG_DATA(h), protocol == IPPROTO_TCP);
		}
	}
}

/* Whether each socket has its row, and each row its socket. */
static bool same(const char *name, bool say)
{
	bool tcp = name[0] == 't';
	int family = strchr(name, '6') ? AF_INET6 : AF_INET;
	struct lines ours;
	char path[64], **theirs;
	size_t count, different;

	snprintf(path, sizeof(path), "/proc/net/%sstat", name);
	theirs = dump(family, tcp ? IPPROTO_TCP : IPPROTO_UDP, &count);
	if (!theirs) {
		fail("sock_diag says nothing of %s", name);
		return true;
	}
	ours = read_lines(path, 1 << 17);
	qsort(theirs, count, sizeof(char *), by_text);
	qsort(ours.line + 1, ours.count - 1, sizeof(char *), by_text);
	different = count != ours.count - 1;
	if (different && say)
		fail("sock_diag: %zu sockets, %s: %zu", count, path, ours.count - 1);
	for (size_t i = 0; i < count; i++) {
		if (i + 1 < ours.count && !row_is(ours.line[i + 1], theirs[i]) && ++different < 5 && say)
			fail("sock_diag: '%s', %s: '%s'", theirs[i], path, ours.line[i + 1]);
		free(theirs[i]);
	}
	free(theirs);
	free_lines(&ours);
	return !different;
}

void compare_diag(const char *name)
{
	/* As in compare_all. */
	for (int tries = 5; tries && !same(name, tries == 1); tries--)
		usleep(300000);
}
