/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A zoo of sockets, kept in every state and with every option that knetstat
 * prints, and a comparison of what it prints with what the kernel says by its
 * other ways: getsockopt, sock_diag, /proc/net/tcp and its kin.
 */
#ifndef ZOO_H
#define ZOO_H

#include <stdbool.h>
#include <stddef.h>

/* One socket whose options are compared. */
struct animal {
	const char *what;
	int fd;
	int peer;		/* the other end, or -1 */
	bool tcp;
	/* What the application has set, and getsockopt does not tell apart. */
	bool keepidle, keepcnt, keepintvl, rcvbuf, sndbuf;
};

struct lines {
	char *text;
	char **line;
	size_t count;
};

/* zoo_rows.c */
extern const char *const state_names[];
int by_text(const void *a, const void *b);
bool row_is(const char *row, const char *expected);
#define DIAGS 5
extern const char *const diags[DIAGS];
extern bool diag_seen[DIAGS];	/* by compare_options, as expected ones */
extern int failures;
void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
void die(const char *what);
struct lines read_lines(const char *path, size_t piece);
void free_lines(struct lines *lines);
/* Every row of /proc/net/NAME has its one row in /proc/net/NAMEstat, and the other way round. Returns their number. */
size_t compare_rows(const char *name, bool say);
void compare_all(void);
void compare_options(const struct animal *animal);
void compare_pieces(const char *name);

/* zoo_diag.c */
void compare_diag(const char *name);

/* zoo_load.c */
int connect_pair(int family, const char *address, int port, int listener, int *accepted);
int listen_on(int family, const char *address, int port, int backlog);
void more_files(void);
void lo_up(void);
int many(int count);
int bench(int count, int rounds);
int churn(int seconds, bool reload);
int unload(void);
int crowd(int count);
bool watch_leaks(void);
void find_leaks(void);

#endif
