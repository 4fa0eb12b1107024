// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A container sees the kernel of its host. Preloaded into every program of a
 * test container (/etc/ld.so.preload), this makes uname(2) answer the release
 * written in /etc/rig/release instead: for uname(1), dkms, kmod, make, Python
 * and systemd alike, whatever they do with PATH and the environment.
 * Where the file is missing, the answer is the host's.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

int uname(struct utsname *answer)
{
	int saved = errno;
	char release[sizeof(answer->release)];
	ssize_t length = -1;
	int fd;

	if (syscall(SYS_uname, answer) < 0)
		return -1;
	fd = open("/etc/rig/release", O_RDONLY | O_CLOEXEC);
	if (fd >= 0) {
		length = read(fd, release, sizeof(release) - 1);
		close(fd);
	}
	errno = saved;
	if (length <= 0)
		return 0;
	release[length] = '\0';
	release[strcspn(release, "\n")] = '\0';
	memcpy(answer->release, release, sizeof(release));
	return 0;
}
