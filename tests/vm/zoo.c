// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * zoo                  every option and every state, in two network namespaces
 * zoo many COUNT       COUNT sockets, most of them established: row for row, also in pieces
 * zoo crowd COUNT      COUNT sockets in one hash bucket, TCP and UDP
 * zoo churn SECONDS    sockets and namespaces come and go under readers
 * zoo reload SECONDS   and the module too
 * zoo unload           the module goes while readers are inside, and comes back
 * zoo bench COUNT ROUNDS
 *
 * It runs as a program of the throwaway machine, as root. Exit status 0: all
 * is as it should be.
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "zoo.h"

static struct animal animals[128];
static int animal_count;

static struct animal *keep(const char *what, int fd, int peer, bool tcp)
{
	struct animal *a = &animals[animal_count++];

	*a = (struct animal){ .what = what, .fd = fd, .peer = peer, .tcp = tcp };
	return a;
}

static void set(int fd, int level, int name, int value)
{
	if (setsockopt(fd, level, name, &value, sizeof(value)))
		die("setsockopt");
}

static void set_time(int fd, int name, long seconds, long microseconds)
{
	struct timeval time = { seconds, microseconds };

	if (setsockopt(fd, SOL_SOCKET, name, &time, sizeof(time)))
		die("setsockopt");
}

static void set_linger(int fd, int seconds)
{
	struct linger linger = { 1, seconds };

	if (setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger)))
		die("setsockopt");
}

/* From now on the socket never sees what is sent to it. */
static void deafen(int fd)
{
	struct sock_filter drop = { BPF_RET | BPF_K, 0, 0, 0 };
	struct sock_fprog program = { 1, &drop };

	if (setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof(program)))
		die("SO_ATTACH_FILTER");
}

/*
 * Sends until the other end's window is closed and a little is left over. Not until our own buffer is full: with that many
 * sockets, it is the machine's memory for TCP that would be.
 */
static void fill_by(int fd, size_t piece)
{
	static const char data[65536];
	ssize_t sent, total = 0;

	fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
	for (int idle = 0; idle < 5; usleep(20000), idle++)
		while (total < 400000 && (sent = send(fd, data, piece, MSG_NOSIGNAL)) > 0) {
			total += sent;
			idle = 0;
		}
}

static void fill(int fd)
{
	fill_by(fd, 65536);
}

static const char *loopback(int family)
{
	return family == AF_INET ? "127.0.0.1" : "::1";
}

static void option_animals(int family)
{
	const char *address = loopback(family);
	int listener = listen_on(family, address, 2000, 7), accepted, fd;
	struct animal *a;

	set(listener, IPPROTO_TCP, TCP_FASTOPEN, 11);
	set(listener, IPPROTO_TCP, TCP_DEFER_ACCEPT, 9);
	keep("listener, fast open, deferred accept", listener, -1, true);

	/* Buffers are set before listen, so that accepted sockets have them. */
	fd = socket(family, SOCK_STREAM, 0);
	set(fd, SOL_SOCKET, SO_REUSEADDR, 1);
	set(fd, SOL_SOCKET, SO_RCVBUF, 7777);
	set(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
	set(fd, IPPROTO_TCP, TCP_KEEPIDLE, 61);
	listener = fd;
	struct sockaddr_in6 name = { .sin6_family = family };

	/* sin_port and sin6_port lie at the same place. */
	name.sin6_port = htons(2001);
	if (family == AF_INET6)
		set(fd, IPPROTO_IPV6, IPV6_V6ONLY, 1);
	if (bind(fd, (void *)&name, family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(name)) || listen(fd, 3))
		die("bind, listen");
	a = keep("listener on any address", fd, -1, true);
	a->rcvbuf = a->keepidle = true;
	fd = connect_pair(family, address, 2001, listener, &accepted);
	a = keep("accepted, inherits", accepted, fd, true);
	a->rcvbuf = a->keepidle = true;
	set(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
	set(fd, IPPROTO_TCP, TCP_KEEPIDLE, 32767);
	set(fd, IPPROTO_TCP, TCP_KEEPCNT, 127);
	set(fd, IPPROTO_TCP, TCP_KEEPINTVL, 3);
	set(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, 2147483647);
	set(fd, SOL_SOCKET, SO_RCVBUF, 100001);
	set(fd, SOL_SOCKET, SO_SNDBUF, 54321);
	set_time(fd, SO_RCVTIMEO, 1, 500000);
	set_time(fd, SO_SNDTIMEO, 9000000, 4000);
	set_linger(fd, 77);
	set(fd, IPPROTO_TCP, TCP_NODELAY, 1);
	set(fd, SOL_SOCKET, SO_REUSEADDR, 1);
	set(fd, SOL_SOCKET, SO_REUSEPORT, 1);
	a = keep("every option", fd, accepted, true);
	a->keepidle = a->keepcnt = a->keepintvl = a->rcvbuf = a->sndbuf = true;

	fd = connect_pair(family, address, 2001, listener, &accepted);
	set_time(fd, SO_SNDTIMEO, 0, 123000);
	/* More than 2^64 milliseconds; what a jiffy of a millisecond cannot count is no timeout. */
	set_time(fd, SO_RCVTIMEO, 20000000000000007, 52000);
	set_linger(fd, 0);
	set(fd, SOL_SOCKET, SO_SNDBUF, 1);
	set(fd, IPPROTO_TCP, TCP_KEEPINTVL, 32767);
	a = keep("a few options, without keepalive", fd, accepted, true);
	a->sndbuf = a->keepintvl = true;
	a = keep("the other end of it", accepted, fd, true);
	a->rcvbuf = a->keepidle = true;
}

/* A pair with small buffers, which fill soon. */
static int small_pair(int family, int listener, int *accepted)
{
	struct animal *a;
	int fd = connect_pair(family, loopback(family), 2002, listener, accepted);

	a = keep("small pair, connecting end", fd, *accepted, true);
	keep("small pair, accepting end", *accepted, fd, true)->rcvbuf = true;
	a->rcvbuf = false;
	return fd;
}

static void state_animals(int family)
{
	const char *address = loopback(family);
	int listener = listen_on(family, address, 2002, 16), full = listen_on(family, address, 2003, 0), shy;
	int fd, accepted;

	set(listener, SOL_SOCKET, SO_RCVBUF, 4096);
	keep("listener for small pairs", listener, -1, true)->rcvbuf = true;

	/* ESTB: nothing, unread data, each kind of closed window, no answer. */
	small_pair(family, listener, &accepted);
	fd = small_pair(family, listener, &accepted);
	send(fd, "twelve bytes", 12, 0);
	fill(small_pair(family, listener, &accepted));
	/* Which size closes both windows for good, a kernel's memory accounting decides. */
	for (size_t piece = 512; piece <= 65536; piece *= 8) {
		fd = small_pair(family, listener, &accepted);
		fill_by(fd, piece);
		fill_by(accepted, piece);
	}
	fd = small_pair(family, listener, &accepted);
	deafen(accepted);
	send(fd, "unheard", 7, 0);

	/* FNW2 and CLSW; FNW2 of a closed socket; TIMW. */
	fd = small_pair(family, listener, &accepted);
	shutdown(fd, SHUT_WR);
	fd = connect_pair(family, address, 2002, listener, &accepted);
	close(fd);
	fd = connect_pair(family, address, 2002, listener, &accepted);
	shutdown(fd, SHUT_WR);
	usleep(50000);
	close(accepted);
	usleep(50000);
	close(fd);

	/* FNW1: the end cannot be sent, or is not heard. CLSG: and the other end comes to its end. */
	fd = small_pair(family, listener, &accepted);
	fill(fd);
	shutdown(fd, SHUT_WR);
	fd = small_pair(family, listener, &accepted);
	deafen(accepted);
	shutdown(fd, SHUT_WR);
	fd = small_pair(family, listener, &accepted);
	fill(fd);
	shutdown(fd, SHUT_WR);
	usleep(50000);
	shutdown(accepted, SHUT_WR);

	/* LACK: the other end has ended and hears no more. */
	fd = small_pair(family, listener, &accepted);
	shutdown(accepted, SHUT_WR);
	usleep(50000);
	deafen(accepted);
	shutdown(fd, SHUT_WR);

	/* SYNS: nobody has accepted, and there is no more room. Recv-Q 1. */
	keep("listener, full", full, -1, true);
	for (int i = 0; i < 3; i++) {
		int client = connect_pair(family, address, 2003, -1, NULL);

		if (i == 0)
			keep("in the backlog", client, -1, true);
	}

	/* SYNR: the last ACK is not enough where accept is deferred. */
	shy = listen_on(family, address, 2004, 5);
	/* Long enough for the slowest machine. */
	set(shy, IPPROTO_TCP, TCP_DEFER_ACCEPT, 900);
	keep("listener, deferred accept", shy, -1, true);
	connect_pair(family, address, 2004, -1, NULL);
}

static int udp_socket(int family, const char *bind_to, int port, const char *peer, int peer_port)
{
	struct sockaddr_in6 name = { .sin6_family = family, .sin6_port = htons(port) };
	socklen_t size = family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(name);
	void *address = family == AF_INET ? (void *)&((struct sockaddr_in *)&name)->sin_addr : (void *)&name.sin6_addr;
	int fd = socket(family, SOCK_DGRAM, 0);

	set(fd, SOL_SOCKET, SO_REUSEADDR, port % 2);
	if (!strcmp(bind_to, "::"))
		set(fd, IPPROTO_IPV6, IPV6_V6ONLY, 1);
	inet_pton(family, bind_to, address);
	if (bind(fd, (void *)&name, size))
		die("bind UDP");
	if (peer) {
		inet_pton(family, peer, address);
		name.sin6_port = htons(peer_port);
		if (connect(fd, (void *)&name, size))
			die("connect UDP");
	}
	return fd;
}

static void udp_animals(int family)
{
	const char *any = family == AF_INET ? "0.0.0.0" : "::", *one = loopback(family);
	int plain = udp_socket(family, any, 3000, NULL, 0);
	int filled = udp_socket(family, one, 3001, NULL, 0);
	int connected = udp_socket(family, one, 3002, one, 3001);
	struct animal *a;

	keep("UDP on any address", plain, -1, false);
	keep("UDP with data", filled, -1, false);
	for (int i = 0; i < 5; i++)
		send(connected, "datagram", 8, 0);
	set(connected, SOL_SOCKET, SO_BROADCAST, 1);
	set(connected, SOL_SOCKET, SO_RCVBUF, 33333);
	set(connected, SOL_SOCKET, SO_SNDBUF, 22222);
	set(connected, SOL_SOCKET, SO_REUSEPORT, 1);
	set_time(connected, SO_RCVTIMEO, 0, 4000);
	set_time(connected, SO_SNDTIMEO, 86400, 0);
	set_linger(connected, 5);
	a = keep("UDP, every option", connected, -1, false);
	a->rcvbuf = a->sndbuf = true;
}

/* IPv4 on an IPv6 socket. */
static void mapped_animals(void)
{
	int listener = listen_on(AF_INET6, "::", 2005, 4), accepted, fd;

	keep("listener for both families", listener, -1, true);
	fd = connect_pair(AF_INET, "127.0.0.1", 2005, listener, &accepted);
	keep("IPv4 end", fd, accepted, true);
	keep("mapped end", accepted, fd, true);
	fd = connect_pair(AF_INET, "127.0.0.1", 2005, listener, &accepted);
	shutdown(accepted, SHUT_WR);
	usleep(50000);
	close(fd);
	usleep(50000);
	close(accepted);
	fd = connect_pair(AF_INET6, "fe80::1234%lo", 2005, listener, &accepted);
	keep("link-local", fd, accepted, true);
	keep("UDP, mapped", udp_socket(AF_INET6, "::ffff:127.0.0.1", 3003, "::ffff:127.0.0.1", 3001), -1, false);
}

static int zoo(void)
{
	static const char *const names[] = { "tcp", "tcp6", "udp", "udp6" };
	bool seen[12] = { false };
	struct lines lines;

	lo_up();
	for (int i = 0; i < 2; i++) {
		option_animals(i ? AF_INET6 : AF_INET);
		state_animals(i ? AF_INET6 : AF_INET);
		udp_animals(i ? AF_INET6 : AF_INET);
	}
	mapped_animals();
	/* For ">#", an answer must be missing for more than a second. */
	usleep(1500000);

	compare_all();
	for (int i = 0; i < animal_count; i++)
		compare_options(&animals[i]);
	for (int i = 0; i < 4; i++) {
		compare_diag(names[i]);
		compare_pieces(names[i]);
	}

	/* The zoo is complete: the kernel itself shows each state (TCP_ESTABLISHED is 1, TCP_CLOSING 11), but CLOSE. */
	lines = read_lines("/proc/net/tcp", 1 << 17);
	for (size_t i = 1; i < lines.count; i++) {
		unsigned int state = 0;

		sscanf(lines.line[i], "%*d: %*s %*s %x", &state);
		if (state < 12)
			seen[state] = true;
	}
	for (int state = 1; state < 12; state++)
		if (!seen[state] && state != 7)
			fail("no socket is in state %d", state);
	for (int i = 0; i < DIAGS; i++)
		if (!diag_seen[i])
			fail("no established socket is '%s'", diags[i]);
	for (size_t i = 1; failures && i < lines.count; i++)
		printf("%s\n", lines.line[i]);
	free_lines(&lines);
	return failures ? 1 : 0;
}

static int two_zoos(void)
{
	int status, theirs = -1;
	/* The same zoo, with the same ports, in a second namespace at the same time. */
	pid_t child = fork();

	if (!child) {
		if (unshare(CLONE_NEWNET))
			die("unshare");
		exit(zoo());
	}
	status = zoo();
	waitpid(child, &theirs, 0);
	printf("second namespace: %d\n", theirs);
	return status || theirs;
}

static int run(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";
	int count = argc > 2 ? atoi(argv[2]) : 0;

	if (!strcmp(what, "many"))
		return many(count);
	if (!strcmp(what, "crowd"))
		return crowd(count);
	if (!strcmp(what, "churn") || !strcmp(what, "reload"))
		return churn(count, what[0] == 'r');
	if (!strcmp(what, "unload"))
		return unload();
	return two_zoos();
}

int main(int argc, char **argv)
{
	bool watched;
	pid_t child;
	int status = -1;

	more_files();
	if (argc > 3 && !strcmp(argv[1], "bench"))
		return bench(atoi(argv[2]), atoi(argv[3]));
	watched = watch_leaks();
	/* In a process of its own, so that its sockets are gone when leaks are looked for. */
	child = fork();
	if (!child)
		exit(run(argc, argv));
	waitpid(child, &status, 0);
	if (watched)
		find_leaks();
	return status || failures;
}
