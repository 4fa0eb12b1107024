// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The init of a machine that asks its kernel about damaged module files, one after the other.
 *
 * /mutants has the whole files and what was changed in each mutant, in the byte order of the machine:
 *   u32 number of files; each: u32 size, bytes
 *   u32 number of mutants; each: u32 file, u32 size, u32 number of changes; each: u32 offset, u32 size, bytes
 * After "ready" a line on the console says with which mutant to begin; until then the machine can be copied.
 *
 * Lines on the console: "> N" before a mutant; "< N ERRNO INIT" after it, INIT telling whether its init function was called;
 * "- N" once it is out again, and the kernel is as it was; "stuck N" where it is not, after which the machine ends; "done".
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <termios.h>
#include <unistd.h>

static int console, log_fd;
static const unsigned char *at;

static void say(const char *format, ...)
{
	char line[100];
	va_list list;
	int n;

	va_start(list, format);
	n = vsnprintf(line, sizeof(line), format, list);
	va_end(list);
	if (write(console, line, n) != n)
		_exit(1);
}

static void end(void)
{
	reboot(RB_AUTOBOOT);
	_exit(1);
}

static uint32_t word(void)
{
	uint32_t value;

	memcpy(&value, at, sizeof(value));
	at += sizeof(value);
	return value;
}

/* Whether the kernel has called an init function since the log was read last. initcall_debug makes it say so. */
static int called(void)
{
	char line[2048];
	int found = 0;
	ssize_t n;

	while ((n = read(log_fd, line, sizeof(line) - 1)) > 0 || errno == EPIPE) {
		if (n <= 0)
			continue;
		line[n] = 0;
		found |= strstr(line, ";calling ") != NULL;
	}
	return found;
}

static int insert(const unsigned char *data, size_t size)
{
	int fd = open("/m.ko", O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600), err;
	size_t done = 0;

	while (done < size) {
		ssize_t n = write(fd, data + done, size - done);

		if (n <= 0) {
			say("no room\n");
			end();
		}
		done += n;
	}
	close(fd);
	fd = open("/m.ko", O_RDONLY | O_CLOEXEC);
	err = syscall(SYS_finit_module, fd, "", 0) ? errno : 0;
	close(fd);
	return err;
}

/* Takes out what is there; returns whether anything stays. */
static int clear(void)
{
	char name[4096];
	int fd = open("/proc/modules", O_RDONLY), i;
	ssize_t n = read(fd, name, sizeof(name) - 1);

	close(fd);
	if (n <= 0)
		return 0;
	name[n] = 0;
	name[strcspn(name, " ")] = 0;
	for (i = 0; i < 3; i++)
		if (!syscall(SYS_delete_module, name, O_NONBLOCK))
			break;
	fd = open("/proc/modules", O_RDONLY);
	n = read(fd, name, sizeof(name) - 1);
	close(fd);
	return n > 0;
}

/* The number in the first whole line on the console: the first ones may come while the machine is being copied. */
static uint32_t asked(void)
{
	struct termios mode;
	char line[64], whole[2];
	uint32_t number;
	ssize_t n;

	tcgetattr(console, &mode);
	mode.c_lflag = ICANON;
	mode.c_oflag = 0;
	tcsetattr(console, TCSANOW, &mode);
	say("ready\n");
	do {
		n = read(console, line, sizeof(line) - 1);
		line[n > 0 ? n : 0] = 0;
	} while (sscanf(line, "from %u%1[.]", &number, whole) != 2);
	return number;
}

int main(void)
{
	uint32_t first;
	const unsigned char *file[16];
	uint32_t size[16], files, count, n, i;
	static unsigned char made[8 << 20];
	struct stat st;
	int fd;

	mkdir("/proc", 0755);
	mount("proc", "/proc", "proc", 0, "");
	mkdir("/dev", 0755);
	mount("dev", "/dev", "devtmpfs", 0, "");
	mkdir("/sys", 0755);
	mount("sysfs", "/sys", "sysfs", 0, "");
	console = open("/dev/console", O_RDWR | O_CLOEXEC);
	log_fd = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	lseek(log_fd, 0, SEEK_END);
	fd = open("/mutants", O_RDONLY | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st))
		end();
	at = mmap(NULL, st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	if (at == MAP_FAILED)
		end();
	files = word();
	for (i = 0; i < files; i++) {
		size[i] = word();
		file[i] = at;
		at += size[i];
	}
	count = word();
	first = asked();
	for (n = 0; n < count; n++) {
		uint32_t base = word(), length = word(), changes = word();
		int err, init;

		if (n >= first) {
			memset(made, 0, length);
			memcpy(made, file[base], length < size[base] ? length : size[base]);
		}
		for (i = 0; i < changes; i++) {
			uint32_t offset = word(), bytes = word();

			if (n >= first)
				memcpy(made + offset, at, bytes);
			at += bytes;
		}
		if (n < first)
			continue;
		say("> %u\n", n);
		err = insert(made, length);
		init = called();
		say("< %u %d %d\n", n, err, init);
		/* Where an init function refuses, it may have left something behind: does the whole file go in? */
		if (clear() || (init && err && (insert(file[base], size[base]) || clear()))) {
			say("stuck %u\n", n);
			end();
		}
		called();
		say("- %u\n", n);
	}
	say("done\n");
	end();
	return 0;
}
