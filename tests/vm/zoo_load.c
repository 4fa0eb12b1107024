// SPDX-License-Identifier: GPL-2.0-or-later
/* Many sockets, sockets that come and go, and a module that does. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/ipv6.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "zoo.h"

#define MODULE "/modules/0.ko"

static const char *const names[] = { "tcpstat", "tcp6stat", "udpstat", "udp6stat" };

void more_files(void)
{
	struct rlimit limit = { 1 << 20, 1 << 20 };

	if (setrlimit(RLIMIT_NOFILE, &limit))
		die("RLIMIT_NOFILE");
}

void lo_up(void)
{
	struct ifreq request = { .ifr_name = "lo" };
	struct in6_ifreq address = { .ifr6_prefixlen = 64 };
	int fd = socket(AF_INET, SOCK_DGRAM, 0), fd6 = socket(AF_INET6, SOCK_DGRAM, 0);

	request.ifr_flags = IFF_UP | IFF_RUNNING;
	if (ioctl(fd, SIOCSIFFLAGS, &request) || ioctl(fd, SIOCGIFINDEX, &request))
		die("lo");
	address.ifr6_ifindex = request.ifr_ifindex;
	inet_pton(AF_INET6, "fe80::1234", &address.ifr6_addr);
	if (ioctl(fd6, SIOCSIFADDR, &address) && errno != EEXIST)
		die("link-local address");
	close(fd);
	close(fd6);
	/* Until its addresses may be used. */
	usleep(100000);
}

static socklen_t put_address(struct sockaddr_in6 *name, int family, const char *address, int port)
{
	char bare[64];

	memset(name, 0, sizeof(*name));
	name->sin6_family = family;
	name->sin6_port = htons(port);
	if (family == AF_INET) {
		inet_pton(family, address, &((struct sockaddr_in *)name)->sin_addr);
		return sizeof(struct sockaddr_in);
	}
	snprintf(bare, sizeof(bare), "%s", address);
	bare[strcspn(bare, "%")] = 0;
	inet_pton(family, bare, &name->sin6_addr);
	name->sin6_scope_id = strchr(address, '%') ? 1 : 0;
	return sizeof(*name);
}

int listen_on(int family, const char *address, int port, int backlog)
{
	struct sockaddr_in6 name;
	socklen_t size = put_address(&name, family, address, port);
	int fd = socket(family, SOCK_STREAM, 0), one = 1;

	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	/* A forked child may hold the last listener on this port a little longer. */
	for (int tries = 0; bind(fd, (void *)&name, size) || listen(fd, backlog); tries++) {
		if (errno != EADDRINUSE || tries == 1000)
			die("listen");
		usleep(10000);
	}
	return fd;
}

/* Without a listener, the connection is only begun. */
int connect_pair(int family, const char *address, int port, int listener, int *accepted)
{
	struct sockaddr_in6 name;
	socklen_t size = put_address(&name, family, address, port);
	int fd = socket(family, SOCK_STREAM | (listener < 0 ? SOCK_NONBLOCK : 0), 0);

	if (connect(fd, (void *)&name, size) && errno != EINPROGRESS)
		die("connect");
	if (listener >= 0) {
		*accepted = accept(listener, NULL, NULL);
		if (*accepted < 0)
			die("accept");
	} else {
		usleep(30000);
	}
	return fd;
}

/* A listener and connections to it, and where the number is even, another listener. */
static void populate(int count)
{
	char address[32];
	int listener = listen_on(AF_INET, "0.0.0.0", 5000, 128), accepted;

	if (count % 2 == 0)
		listen_on(AF_INET, "0.0.0.0", 5002, 1);
	for (int i = 0; i < (count - 1) / 2; i++) {
		/* Each address has room for a range of ports. */
		snprintf(address, sizeof(address), "127.0.0.%d", 1 + i / 10000);
		connect_pair(AF_INET, address, 5000, listener, &accepted);
	}
}

int many(int count)
{
	size_t rows;

	if (count) {
		lo_up();
		populate(count);
	}
	rows = compare_rows("tcp", true);
	printf("%zu rows\n", rows);
	if (rows != (size_t)count)
		fail("expected %d", count);
	compare_all();
	compare_pieces("tcp");
	return failures ? 1 : 0;
}

/* All in one bucket: each shares its port with all others. */
int crowd(int count)
{
	struct sockaddr_in name = { .sin_family = AF_INET, .sin_port = htons(5001) };
	int one = 1;

	lo_up();
	for (int i = 0; i < count; i++)
		for (int type = SOCK_STREAM; type <= SOCK_DGRAM; type++) {
			int fd = socket(AF_INET, type, 0);

			setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof(one));
			if (bind(fd, (void *)&name, sizeof(name)) || (type == SOCK_STREAM && listen(fd, 1)))
				die("bind, listen");
		}
	if (compare_rows("tcp", true) != (size_t)count || compare_rows("udp", true) != (size_t)count)
		fail("expected %d", count);
	compare_pieces("tcp");
	compare_pieces("udp");
	return failures ? 1 : 0;
}

static double seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec + now.tv_nsec / 1e9;
}

static double read_once(const char *path, size_t *size)
{
	static char buffer[1 << 17];
	double begin = seconds();
	int fd = open(path, O_RDONLY);
	ssize_t got;

	*size = 0;
	while ((got = read(fd, buffer, sizeof(buffer))) > 0)
		*size += got;
	close(fd);
	return seconds() - begin;
}

/* In turns, so that what disturbs one disturbs the other. */
int bench(int count, int rounds)
{
	static const char *const paths[] = { "/proc/net/tcp", "/proc/net/tcpstat" };
	size_t size;

	lo_up();
	populate(count);
	for (int i = 0; i < rounds; i++)
		for (int j = 0; j < 2; j++)
			printf("%s %.6f\n", paths[j], read_once(paths[j], &size));
	return 0;
}

static volatile bool stop;
static bool reloading;

static void *reader(void *argument)
{
	size_t piece = (size_t)argument;
	char path[32], *buffer = malloc(piece);
	unsigned int turn = 0;

	while (!stop) {
		snprintf(path, sizeof(path), "/proc/net/%s", names[turn++ % 4]);
		int fd = open(path, O_RDONLY);

		while (fd >= 0 && !stop && read(fd, buffer, piece) > 0)
			;
		if (fd >= 0) {
			pread(fd, buffer, piece, rand() % 100000);
			close(fd);
		}
		/* Leave time for what is to be read. */
		usleep(20000);
	}
	free(buffer);
	return NULL;
}

/* What came and went; more or less, since many add to them. */
static unsigned long connections, namespaces_made;

static void *connector(void *argument)
{
	int family = (long)argument & 1 ? AF_INET6 : AF_INET, port = 6000 + (long)argument;
	const char *address = family == AF_INET ? "127.0.0.1" : "::1";

	for (unsigned int turn = 0; !stop; turn++) {
		int listener = listen_on(family, address, port, 64), accepted[16], fd[16], udp[16];

		for (int i = 0; i < 16; i++) {
			struct linger hard = { 1, 0 };

			fd[i] = connect_pair(family, address, port, listener, &accepted[i]);
			/* Half of them leave no TIME_WAIT behind. */
			if ((i + turn) % 2)
				setsockopt(fd[i], SOL_SOCKET, SO_LINGER, &hard, sizeof(hard));
			udp[i] = socket(family, SOCK_DGRAM, 0);
			sendto(udp[i], "x", 1, 0, NULL, 0);
		}
		for (int i = 0; i < 16; i++) {
			close(fd[i]);
			close(accepted[i]);
			close(udp[i]);
		}
		connections += 16;
		close(listener);
	}
	return NULL;
}

static void *namespaces(void *argument)
{
	size_t size;

	while (!stop) {
		pid_t child = fork();

		if (!child) {
			syscall(SYS_close_range, 3, ~0U, 0);
			if (unshare(CLONE_NEWNET))
				_exit(2);
			lo_up();
			close(listen_on(AF_INET, "127.0.0.1", 7000, 4));
			for (int i = 0; i < 4; i++) {
				char path[32];

				snprintf(path, sizeof(path), "/proc/net/%s", names[i]);
				read_once(path, &size);
				if (!size && !reloading)
					_exit(3);
			}
			/* The last one still listens when the namespace ends. */
			listen_on(AF_INET6, "::1", 7000, 4);
			_exit(0);
		}
		int status;

		waitpid(child, &status, 0);
		if (status)
			fail("in a namespace: %d", status);
		namespaces_made++;
	}
	return argument;
}

/* Connections that stay: each reader must see each of them exactly once, whatever comes and goes around them. */
#define STAYING 200

static void *census(void *argument)
{
	size_t piece = (size_t)argument;

	for (unsigned int turn = 0; !stop; turn++) {
		struct lines lines = read_lines("/proc/net/tcpstat", piece);
		int found = 0;

		for (size_t i = 1; i < lines.count; i++)
			found += strstr(lines.line[i], "127.0.0.9:5009 ") && strstr(lines.line[i], " ESTB ");
		if (found != 2 * STAYING)
			fail("turn %u by %zu: %d rows of %d connections", turn, piece, found, STAYING);
		free_lines(&lines);
		usleep(20000);
	}
	return NULL;
}

static void insert(void)
{
	int fd = open(MODULE, O_RDONLY);

	if (fd < 0 || syscall(SYS_finit_module, fd, "", 0))
		die("finit_module");
	close(fd);
}

static void take_out(void)
{
	if (syscall(SYS_delete_module, "knetstat", O_NONBLOCK))
		die("delete_module");
}

/* With `reload`, the module comes and goes too, and nobody can count. */
int churn(int duration, bool reload)
{
	static const size_t pieces[] = { 1, 100, 4096, 1 << 17 };
	pthread_t threads[32];
	int count = 0, turns = 0, listener, accepted;

	reloading = reload;
	lo_up();
	listener = listen_on(AF_INET, "127.0.0.9", 5009, 128);
	for (int i = 0; i < STAYING; i++)
		connect_pair(AF_INET, "127.0.0.9", 5009, listener, &accepted);
	for (long i = 0; i < 4; i++) {
		pthread_create(&threads[count++], NULL, connector, (void *)i);
		pthread_create(&threads[count++], NULL, reader, (void *)pieces[i]);
	}
	if (!reload) {
		pthread_create(&threads[count++], NULL, census, (void *)500);
		pthread_create(&threads[count++], NULL, census, (void *)(1 << 17));
	}
	pthread_create(&threads[count++], NULL, namespaces, NULL);
	for (double end = seconds() + duration; seconds() < end; turns++) {
		usleep(100000);
		if (reload) {
			take_out();
			insert();
		}
	}
	stop = true;
	for (int i = 0; i < count; i++)
		pthread_join(threads[i], NULL);
	printf("%lu connections, %lu namespaces, %d reloads\n", connections, namespaces_made, reload ? turns : 0);
	compare_all();
	return failures ? 1 : 0;
}

/* A reader keeps its file open over an unload; its next read ends or fails, and nothing else. */
int unload(void)
{
	char buffer[100];
	pthread_t threads[4];

	lo_up();
	populate(1000);
	for (long i = 0; i < 4; i++)
		pthread_create(&threads[i], NULL, reader, (void *)(size_t[]){ 1, 100, 4096, 1 << 17 }[i]);
	for (int turn = 0; turn < 20; turn++) {
		int fd = open("/proc/net/tcpstat", O_RDONLY), again;

		if (read(fd, buffer, sizeof(buffer)) != sizeof(buffer))
			fail("turn %d: first read", turn);
		take_out();
		if (read(fd, buffer, sizeof(buffer)) > 0)
			fail("turn %d: read of a removed file", turn);
		again = open("/proc/net/tcpstat", O_RDONLY);
		if (again >= 0)
			fail("turn %d: the file is still there", turn);
		insert();
		close(fd);
	}
	stop = true;
	for (int i = 0; i < 4; i++)
		pthread_join(threads[i], NULL);
	/* It works as before. */
	compare_all();
	return failures ? 1 : 0;
}

/* What has been allocated since, and nothing leads to any more, on a kernel that can tell (CONFIG_DEBUG_KMEMLEAK). */
#define KMEMLEAK "/sys/kernel/debug/kmemleak"

static void tell_kmemleak(const char *what)
{
	int fd = open(KMEMLEAK, O_WRONLY);

	if (fd < 0 || write(fd, what, strlen(what)) < 0)
		die(KMEMLEAK);
	close(fd);
}

bool watch_leaks(void)
{
	mount("debugfs", "/sys/kernel/debug", "debugfs", 0, NULL);
	if (access(KMEMLEAK, F_OK))
		return false;
	/* What the kernel's own start has lost is not ours. */
	tell_kmemleak("scan");
	tell_kmemleak("clear");
	return true;
}

void find_leaks(void)
{
	struct lines lines;
	size_t leaks = 0;

	/* A module that is in keeps what its variables lead to. */
	take_out();
	/* Only what is older than five seconds counts, and only what two scans have found (mm/kmemleak.c). */
	for (int i = 0; i < 3; i++) {
		sleep(6);
		tell_kmemleak("scan");
	}
	lines = read_lines(KMEMLEAK, 1 << 16);
	for (size_t i = 0; i < lines.count; i++) {
		leaks += !strncmp(lines.line[i], "unreferenced", 12);
		if (leaks && leaks < 5)
			printf("kmemleak: %s\n", lines.line[i]);
	}
	printf("kmemleak: %zu unreferenced objects\n", leaks);
	if (leaks)
		fail("memory was lost");
}
