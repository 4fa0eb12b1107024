// SPDX-License-Identifier: GPL-2.0-or-later
/* What knetstat ought to print, computed without it, and what it prints. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "zoo.h"

int failures;
const char *const diags[DIAGS] = { "", ">|<", "|<", ">|", ">#" };
bool diag_seen[DIAGS];
/* By the kernel's number. */
const char *const state_names[] = { "NONE", "ESTB", "SYNS", "SYNR", "FNW1", "FNW2", "TIMW",
				    "CLSD", "CLSW", "LACK", "LSTN", "CLSG", "SYNR" };

void fail(const char *format, ...)
{
	va_list args;

	failures++;
	va_start(args, format);
	printf("FAIL ");
	vprintf(format, args);
	printf("\n");
	va_end(args);
	fflush(stdout);
}

void die(const char *what)
{
	printf("DIE %s: %s\n", what, strerror(errno));
	exit(2);
}

/* Reads a file by `piece` bytes at a time, and splits it. */
struct lines read_lines(const char *path, size_t piece)
{
	struct lines lines = { NULL, NULL, 0 };
	size_t size = 1 << 16, used = 0, capacity = 0;
	int fd = open(path, O_RDONLY);
	ssize_t got;

	if (fd < 0)
		die(path);
	lines.text = malloc(size);
	for (;;) {
		if (used + piece + 1 > size)
			lines.text = realloc(lines.text, size = size * 2 + piece);
		got = read(fd, lines.text + used, piece);
		if (got < 0)
			die(path);
		if (!got)
			break;
		used += got;
	}
	close(fd);
	lines.text[used] = 0;
	for (char *at = lines.text, *end; (end = strchr(at, '\n')); at = end + 1) {
		if (lines.count == capacity)
			lines.line = realloc(lines.line, sizeof(char *) * (capacity = capacity * 2 + 64));
		*end = 0;
		lines.line[lines.count++] = at;
	}
	return lines;
}

void free_lines(struct lines *lines)
{
	free(lines->text);
	free(lines->line);
}

static void put_address(char *out, size_t size, const char *hex, unsigned int port)
{
	char column[80], text[INET6_ADDRSTRLEN], number[8];
	uint32_t word[4];
	int count = strlen(hex) / 8;

	for (int i = 0; i < count; i++)
		sscanf(hex + 8 * i, "%8x", &word[i]);
	inet_ntop(count == 4 ? AF_INET6 : AF_INET, word, text, sizeof(text));
	snprintf(number, sizeof(number), port ? "%u" : "*", port);
	snprintf(column, sizeof(column), "%s:%s", text, number);
	snprintf(out, size, "%-23s", column);
}

/*
 * A row, or its beginning: more must follow then. One that ends with '$' is all of it. Of a request socket, and of the
 * placeholder of a closed one, there is nothing more to say.
 */
bool row_is(const char *row, const char *expected)
{
	size_t size = strcspn(expected, "$");

	return !strncmp(row, expected, size) && !row[size] == !!expected[size];
}

/* The part of a row that /proc/net/tcp and its kin know about. */
static void expected_row(char *out, size_t size, const char *line, bool tcp)
{
	char local[33], foreign[33], left[80], right[80];
	unsigned int lport, fport, state, tx, rx;
	int place = 0;

	/* The kernel's own row has five more fields after a socket's place, and none where there is no full socket. */
	sscanf(line, "%*d: %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s%n", &place);
	if (sscanf(line, "%*d: %32[0-9A-F]:%x %32[0-9A-F]:%x %x %x:%x", local, &lport, foreign, &fport, &state, &tx,
		   &rx) != 7) {
		fail("not understood: %s", line);
		state = 0;
	}
	put_address(left, sizeof(left), local, lport);
	put_address(right, sizeof(right), foreign, fport);
	snprintf(out, size, "%6d %6d %s %s %s%s%s", (int)rx, (int)tx, left, right, tcp ? state_names[state] : "",
		 tcp ? " " : "", line[place + strspn(line + place, " ")] ? "" : "$");
}

int by_text(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

size_t compare_rows(const char *name, bool say)
{
	bool tcp = name[0] == 't';
	const char *header = tcp ? "Recv-Q Send-Q Local Address           Foreign Address         Stat Diag Options" :
				   "Recv-Q Send-Q Local Address           Foreign Address         Options";
	char path[64], statpath[64], row[256];
	struct lines theirs, ours;
	char **expected;
	size_t rows, different = 0;

	snprintf(path, sizeof(path), "/proc/net/%s", name);
	snprintf(statpath, sizeof(statpath), "/proc/net/%sstat", name);
	theirs = read_lines(path, 1 << 17);
	ours = read_lines(statpath, 1 << 17);
	rows = theirs.count - 1;
	if (!ours.count || strcmp(ours.line[0], header))
		fail("%s: header", statpath);
	expected = calloc(rows + 1, sizeof(char *));
	for (size_t i = 0; i < rows; i++) {
		expected_row(row, sizeof(row), theirs.line[i + 1], tcp);
		expected[i] = strdup(row);
	}
	qsort(expected, rows, sizeof(char *), by_text);
	qsort(ours.line + 1, ours.count - 1, sizeof(char *), by_text);
	if (ours.count != theirs.count) {
		different = 1;
		if (say)
			fail("%s: %zu rows, %s: %zu", path, rows, statpath, ours.count - 1);
	}
	for (size_t i = 0; i < rows && i + 1 < ours.count; i++)
		if (!row_is(ours.line[i + 1], expected[i]) && ++different < 5 && say)
			fail("%s: expected '%s', found '%s'", statpath, expected[i], ours.line[i + 1]);
	for (size_t i = 0; i < rows; i++)
		free(expected[i]);
	free(expected);
	free_lines(&theirs);
	free_lines(&ours);
	return different ? (size_t)-1 : rows;
}

/* Timers run on between the two files: what is wrong stays so. */
void compare_all(void)
{
	static const char *const names[] = { "tcp", "tcp6", "udp", "udp6" };

	for (int i = 0; i < 4; i++) {
		int tries = 5;
		size_t rows;

		while ((rows = compare_rows(names[i], tries == 1)) == (size_t)-1 && --tries)
			usleep(300000);
		printf("%s: %zd rows\n", names[i], rows);
	}
}

static int get(const struct animal *a, int level, int name)
{
	int value = -1;
	socklen_t size = sizeof(value);

	if (getsockopt(a->fd, level, name, &value, &size))
		die(a->what);
	return value;
}

/* 6.2 tells our receive window too, in a field behind those that the C library's headers may know. */
struct tcp_info_62 {
	struct tcp_info known;
	uint32_t rcv_wnd, rehash;
};

static struct tcp_info info_of(int fd, long long *rcv_wnd)
{
	struct tcp_info_62 info;
	socklen_t size = sizeof(info);

	memset(&info, 0, sizeof(info));
	if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size))
		die("TCP_INFO");
	if (rcv_wnd)
		*rcv_wnd = size >= offsetof(struct tcp_info_62, rehash) ? (long long)info.rcv_wnd : -1;
	return info.known;
}

/* getsockopt gives seconds, the row the retransmits that last that long (RFC 6298: doubling from 1 s to 120 s). */
static int retransmits(int seconds)
{
	int count = 0, period = 0, timeout = 1;

	while (period < seconds) {
		period += timeout;
		timeout = timeout * 2 > 120 ? 120 : timeout * 2;
		count++;
	}
	return count;
}

static char *add(char *p, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	p += vsprintf(p, format, args);
	va_end(args);
	return p;
}

static char *add_buffers(char *p, const struct animal *a)
{
	static const struct { int option; const char *name; } timeouts[] = {
		{ SO_RCVTIMEO, "SO_RCVTIMEO" }, { SO_SNDTIMEO, "SO_SNDTIMEO" } };
	struct linger linger;
	struct timeval time;
	socklen_t size;

	if (a->rcvbuf)
		p = add(p, ",SO_RCVBUF=%d", get(a, SOL_SOCKET, SO_RCVBUF) / 2);
	if (a->sndbuf)
		p = add(p, ",SO_SNDBUF=%d", get(a, SOL_SOCKET, SO_SNDBUF) / 2);
	for (int i = 0; i < 2; i++) {
		size = sizeof(time);
		getsockopt(a->fd, SOL_SOCKET, timeouts[i].option, &time, &size);
		if (time.tv_sec)
			p = add(p, ",%s=%ld%03ldms", timeouts[i].name, (long)time.tv_sec, (long)time.tv_usec / 1000);
		else if (time.tv_usec)
			p = add(p, ",%s=%ldms", timeouts[i].name, (long)time.tv_usec / 1000);
	}
	size = sizeof(linger);
	getsockopt(a->fd, SOL_SOCKET, SO_LINGER, &linger, &size);
	if (linger.l_onoff)
		p = add(p, ",SO_LINGER=%ds", linger.l_linger);
	return p;
}

/* Everything behind Stat (TCP) or behind the addresses (UDP). */
static void expected_options(char *p, const struct animal *a)
{
	if (a->tcp) {
		long long rcv_wnd;
		struct tcp_info info = info_of(a->fd, &rcv_wnd);
		const char *diag = "";

		if (info.tcpi_state == 1 && a->peer >= 0) {
			/* Before 6.2: what the peer may send. */
			if (rcv_wnd < 0)
				rcv_wnd = info_of(a->peer, NULL).tcpi_snd_wnd;
			diag = !rcv_wnd && !info.tcpi_snd_wnd ? ">|<" : !rcv_wnd ? "|<" :
			       !info.tcpi_snd_wnd ? ">|" :
			       info.tcpi_unacked && info.tcpi_last_ack_recv > 1000 ? ">#" : "";
		}
		p = add(p, "%-4s ", diag);
		for (int i = 0; i < DIAGS; i++)
			diag_seen[i] |= info.tcpi_state == 1 && !strcmp(diag, diags[i]);
	}
	p = add(p, "SO_REUSEADDR=%d,SO_REUSEPORT=%d", get(a, SOL_SOCKET, SO_REUSEADDR), get(a, SOL_SOCKET, SO_REUSEPORT));
	if (!a->tcp) {
		p = add_buffers(p, a);
		add(p, ",SO_BROADCAST=%d", get(a, SOL_SOCKET, SO_BROADCAST));
		return;
	}
	p = add(p, ",SO_KEEPALIVE=%d", get(a, SOL_SOCKET, SO_KEEPALIVE));
	if (a->keepidle)
		p = add(p, ",TCP_KEEPIDLE=%d", get(a, IPPROTO_TCP, TCP_KEEPIDLE));
	if (a->keepcnt)
		p = add(p, ",TCP_KEEPCNT=%d", get(a, IPPROTO_TCP, TCP_KEEPCNT));
	if (a->keepintvl)
		p = add(p, ",TCP_KEEPINTVL=%d", get(a, IPPROTO_TCP, TCP_KEEPINTVL));
	if (get(a, IPPROTO_TCP, TCP_USER_TIMEOUT))
		p = add(p, ",TCP_USER_TIMEOUT=%d", get(a, IPPROTO_TCP, TCP_USER_TIMEOUT));
	p = add_buffers(p, a);
	p = add(p, ",TCP_NODELAY=%d", get(a, IPPROTO_TCP, TCP_NODELAY));
	if (info_of(a->fd, NULL).tcpi_state == 10)
		p = add(p, ",TCP_FASTOPEN=%d", get(a, IPPROTO_TCP, TCP_FASTOPEN));
	add(p, ",TCP_DEFER_ACCEPT=%d", retransmits(get(a, IPPROTO_TCP, TCP_DEFER_ACCEPT)));
}

static void put_name(char *out, size_t size, const struct sockaddr_in6 *name)
{
	char text[INET6_ADDRSTRLEN] = "", column[80];
	const void *address = name->sin6_family == AF_INET6 ? (const void *)&name->sin6_addr :
							      &((const struct sockaddr_in *)name)->sin_addr;

	inet_ntop(name->sin6_family, address, text, sizeof(text));
	if (name->sin6_port)
		snprintf(column, sizeof(column), "%s:%d", text, ntohs(name->sin6_port));
	else
		snprintf(column, sizeof(column), "%s:*", text);
	snprintf(out, size, "%-23s", column);
}

void compare_options(const struct animal *a)
{
	struct sockaddr_in6 local = { 0 }, foreign = { 0 };
	socklen_t size = sizeof(local), fsize = sizeof(foreign);
	char expected[1024] = "", key[256], left[80], right[80];
	struct lines ours;
	int found = 0;

	getsockname(a->fd, (void *)&local, &size);
	if (getpeername(a->fd, (void *)&foreign, &fsize)) {
		/* Not connected, or not yet: SYN_SENT is compared by compare_rows. */
		memset(&foreign, 0, sizeof(foreign));
		foreign.sin6_family = local.sin6_family;
	}
	put_name(left, sizeof(left), &local);
	put_name(right, sizeof(right), &foreign);
	snprintf(key, sizeof(key), "%s %s ", left, right);
	expected_options(expected, a);
	ours = read_lines(local.sin6_family == AF_INET6 ? (a->tcp ? "/proc/net/tcp6stat" : "/proc/net/udp6stat") :
							  (a->tcp ? "/proc/net/tcpstat" : "/proc/net/udpstat"), 1 << 17);
	for (size_t i = 1; i < ours.count; i++) {
		char *at = strstr(ours.line[i], key);

		if (!at)
			continue;
		found++;
		at += strlen(key) + (a->tcp ? 5 : 0);
		if (strcmp(at, expected))
			fail("%s: expected '%s', found '%s' in '%s'", a->what, expected, at, ours.line[i]);
	}
	if (found != 1)
		fail("%s: %d rows for '%s'", a->what, found, key);
	printf("%s: %s%s\n", a->what, key, expected);
	free_lines(&ours);
}

/* Any size of piece and any offset give the same text. */
void compare_pieces(const char *name)
{
	static const size_t pieces[] = { 1, 7, 100, 4095, 4096, 4097, 65536 };
	struct lines whole, ours;
	char path[64], buffer[301];
	int fd;

	snprintf(path, sizeof(path), "/proc/net/%sstat", name);
	whole = read_lines(path, 1 << 20);
	for (unsigned int i = whole.count > 2000 ? 3 : 0; i < sizeof(pieces) / sizeof(*pieces); i++) {
		ours = read_lines(path, pieces[i]);
		if (ours.count != whole.count)
			fail("%s by %zu: %zu lines, not %zu", path, pieces[i], ours.count, whole.count);
		for (size_t j = 0; j < whole.count && j < ours.count; j++)
			if (strcmp(whole.line[j], ours.line[j])) {
				fail("%s by %zu: line %zu '%s', not '%s'", path, pieces[i], j, ours.line[j], whole.line[j]);
				break;
			}
		free_lines(&ours);
	}
	fd = open(path, O_RDONLY);
	for (size_t j = 0, step = whole.count / 50 + 1; j < whole.count; j += step) {
		off_t offset = whole.line[j] - whole.text + j % 5;
		ssize_t got = pread(fd, buffer, 300, offset);
		const char *want = whole.text + offset;

		/* read_lines has put a 0 for each newline. */
		for (ssize_t k = 0; k < got; k++)
			if (buffer[k] != (want[k] ? want[k] : '\n')) {
				fail("%s at %lld: differs after %zd bytes", path, (long long)offset, k);
				break;
			}
		if (got <= 0)
			fail("%s at %lld: read %zd", path, (long long)offset, got);
	}
	close(fd);
	free_lines(&whole);
}
