# SPDX-License-Identifier: GPL-2.0-or-later
# As root, on a fresh Debian 12 or 13: `make run` runs the daemon on this machine's kernels, `make test` passes all tests.

# The system's Python: the one that sees Debian's python3-systemd. One that a version manager put on PATH does not.
PYTHON := /usr/bin/python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest -p no:cacheprovider
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
SOURCE := /usr/src/knetstat-$(VERSION)
MODULE_FILES := Kbuild Makefile compat.h dkms.conf knetstat.c
APT := DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300

RUN_PACKAGES := python3 python3-venv python3-systemd python3-pyudev python3-sdnotify python3-zstandard dkms kmod openssl zstd xz-utils
TEST_PACKAGES := $(RUN_PACKAGES) git gcc libc6-dev mmdebstrap systemd-container apt-utils dpkg-dev qemu-system-x86 busybox-static cpio \
	bzip2 lz4 lzop python3-lzo initramfs-tools-core util-linux procps xz-utils scdoc groff-base bash zsh fish mtools ovmf mokutil

# Every worker of the tests, and every Python that they start, would compile everything anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup setup-test module-install module-uninstall run man test unit coverage container container-slow faults demo test-vm test-sanitizers bench \
	mutants fuzz clean install install-python install-scripts install-data install-module uninstall deb deb-tree

help:  ## show the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 18

# apt is asked only for what is missing, so that a second run works offline and in no time.
define need
	@missing=""; for p in $(1); do dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then echo "installing:$$missing"; $(APT) update && $(APT) install -y --no-install-recommends $$missing; fi
endef

$(BIN)/knetstatd: pyproject.toml
	$(PYTHON) -m venv --system-site-packages $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

setup:  ## a virtual environment with the daemon and its command
	$(call need,$(RUN_PACKAGES))
	@$(MAKE) --no-print-directory $(BIN)/knetstatd

$(BIN)/pytest: $(BIN)/knetstatd
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

setup-test: setup  ## what the tests need besides
	$(call need,$(TEST_PACKAGES))
	@$(MAKE) --no-print-directory $(BIN)/pytest

module-install:  ## put knetstat's source under /usr/src and into DKMS
	$(call need,dkms)
	@if ! (for file in $(MODULE_FILES); do cmp -s module/$$file $(SOURCE)/$$file || exit 1; done); then \
		$(MAKE) --no-print-directory -s install-module DESTDIR= && \
		echo "knetstat $(VERSION) is in $(SOURCE)"; fi
	@[ -n "$$(dkms status knetstat/$(VERSION))" ] || dkms add knetstat/$(VERSION)

module-uninstall:  ## take it out of DKMS, off every kernel, and delete its source
	if [ -n "$$(dkms status knetstat/$(VERSION))" ]; then dkms remove knetstat/$(VERSION) --all; fi
	rm -rf $(SOURCE)

run: setup module-install  ## run the daemon on this machine's kernels, in the foreground
	$(BIN)/knetstatd --foreground

# scdoc(5) turns man/NAME.SECTION.scd into a page.
MAN := $(patsubst man/%.scd,build/man/%,$(wildcard man/*.scd))
man: $(MAN)  ## build the manual pages, in build/man

build/man/%: man/%.scd
	@command -v scdoc >/dev/null || { $(APT) update && $(APT) install -y --no-install-recommends scdoc; }
	@mkdir -p $(@D)
	scdoc <$< >$@.new && mv $@.new $@

# Tests wait as much as they compute; more than four want much memory.
WORKERS := $(shell n=$$(nproc); echo $$((n < 4 ? n : 4)))

unit: setup-test  ## unit tests and linters (seconds; HYPOTHESIS_PROFILE=thorough: more examples)
	$(PYTEST) tests/unit -n $(WORKERS) --dist worksteal $(ARGS)

# The planner and everything that reads what others wrote.
PARSERS := core/names core/config core/planner system/files formats/* boot/* dkms/* machine/* verify/* diagnosis/build_log diagnosis/compare_kernels \
	diagnosis/uname_traps state/load_history state/digests
comma := ,
coverage: setup-test  ## unit tests; fails unless the planner and all parsers are covered by branch
	$(PYTEST) tests/unit --cov=knetstatd --cov-branch --cov-report= $(ARGS)
	$(BIN)/python -m coverage report --fail-under=100 \
		--include=$(subst $() $(),$(comma),$(foreach m,$(PARSERS),knetstatd/$(m).py))

container: setup-test  ## tests in Debian containers with systemd, real dkms, real kernels (minutes)
	$(PYTEST) tests/container $(ARGS)

container-slow: setup-test  ## 50 random kills, 50 installations beside the hook, other people's modules, 500 random ones (hours)
	$(PYTEST) tests/container -m slow $(ARGS)

demo: setup-test  ## the story in a virtual machine, without knetstatd and with it (minutes)
	$(BIN)/python -m tests.vm.demo

faults: setup-test  ## full disks, power cuts (CUTS=30, SEED=), things that hang or are gone (two to three hours)
	$(call need,qemu-utils e2fsprogs)
	$(PYTEST) tests/faults -s $(ARGS)

test-vm: setup-test  ## the bundled module on every kernel series, upgrades and reboots, in virtual machines (two hours)
	$(PYTEST) tests/vm --ignore=tests/vm/test_sanitizers.py $(ARGS)

test-sanitizers: setup-test  ## ten minutes of churn on a kernel with KASAN, lockdep and kmemleak, which is made first (an hour)
	$(call need,make perl flex bison bc libelf-dev sparse)
	$(PYTEST) tests/vm/test_sanitizers.py $(ARGS)

# A file's tests stay together: some share a machine.
test: setup-test  ## all tests but the slow ones
	HYPOTHESIS_PROFILE=thorough $(PYTEST) -m 'not slow' -n $(WORKERS) --dist loadscope $(ARGS)

# mutants/ remembers what was killed: an interrupted run goes on, and a later one asks again only about what survived or changed.
mutants: setup-test  ## small faults that no unit test notices, in the code that decides and acts (an hour; anew: rm -r mutants)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[mutants]'
	$(BIN)/python -m tests.mutants $(ARGS)

# build/fuzz remembers what was reached; KEEP=1 makes the corpora of tests/fuzz, which `make test` replays, anew of it.
SECONDS := 60
fuzz: setup-test  ## random bytes for each parser, a minute each (FUZZ=formats.elf for one, SECONDS=3600; an hour)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[fuzz]'
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS) $(if $(KEEP),--keep) $(FUZZ)

bench: setup-test  ## the budgets, as ratios measured in one run
	$(BIN)/python -m bench $(ARGS)

# Where `make install` puts things: PREFIX=/usr for a distribution's package, with DESTDIR= the package's root.
PREFIX ?= /usr/local
DESTDIR ?=
BINDIR := $(PREFIX)/bin
UNITDIR := $(PREFIX)/lib/systemd/system
CATALOGDIR := $(PREFIX)/lib/systemd/catalog
SYSUSERSDIR := $(PREFIX)/lib/sysusers.d
MANDIR := $(PREFIX)/share/man
BASHDIR := $(PREFIX)/share/bash-completion/completions
ZSHDIR := $(PREFIX)/share/zsh/site-functions
FISHDIR := $(PREFIX)/share/fish/vendor_completions.d
# Where this Python looks for packages, and which of these places is below PREFIX.
SITE := $(shell $(PYTHON) -c 'import site; print(*site.getsitepackages())')
PYTHONDIR = $(or $(firstword $(filter $(PREFIX)/lib/%,$(SITE))),$(error $(PYTHON) looks for nothing below $(PREFIX)/lib: give PYTHONDIR=))

# Isolated from the environment and the current directory; without site.py, which costs memory as long as the daemon runs; and
# writing no bytecode, which a full disk cuts off in the middle, after which nothing starts any more (python(1), -I, -S, -B).
define script
#!$(PYTHON) -ISB
import sys

sys.path += "$(SITE)".split()
from knetstatd.$(1) import main

sys.exit(main())
endef
export DAEMON_SCRIPT = $(call script,daemon.main)
export COMMAND_SCRIPT = $(call script,cli.main)

PUT := install -D -m 644

install: install-python install-scripts install-data install-module  ## all files, for other distributions: DESTDIR= PREFIX=/usr

install-python:
	for file in knetstatd/*.py knetstatd/*/*.py; do install -D -m 644 $$file $(DESTDIR)$(PYTHONDIR)/$$file || exit; done
	$(if $(DESTDIR),,$(PYTHON) -m compileall -q $(PYTHONDIR)/knetstatd)

install-scripts:
	install -d $(DESTDIR)$(BINDIR)
	printf '%s\n' "$$DAEMON_SCRIPT" >$(DESTDIR)$(BINDIR)/knetstatd
	printf '%s\n' "$$COMMAND_SCRIPT" >$(DESTDIR)$(BINDIR)/knetstatctl
	chmod 755 $(DESTDIR)$(BINDIR)/knetstatd $(DESTDIR)$(BINDIR)/knetstatctl

install-data: man
	$(PUT) units/*.service units/*.socket -t $(DESTDIR)$(UNITDIR)
	$(PUT) units/knetstatd.sysusers $(DESTDIR)$(SYSUSERSDIR)/knetstatd.conf
	$(PUT) units/*.catalog -t $(DESTDIR)$(CATALOGDIR)
	$(foreach page,$(MAN),$(PUT) $(page) -t $(DESTDIR)$(MANDIR)/man$(subst .,,$(suffix $(page))) &&) :
	$(PUT) completion/knetstatctl.bash $(DESTDIR)$(BASHDIR)/knetstatctl
	$(PUT) completion/_knetstatctl -t $(DESTDIR)$(ZSHDIR)
	$(PUT) completion/knetstatctl.fish -t $(DESTDIR)$(FISHDIR)
	[ -e $(DESTDIR)/etc/knetstatd/knetstatd.toml ] || $(PUT) etc/knetstatd.toml -t $(DESTDIR)/etc/knetstatd
	$(PUT) etc/needrestart.conf $(DESTDIR)/etc/needrestart/conf.d/knetstatd.conf
	install -d $(DESTDIR)/usr/lib/motd.d
	ln -sf /run/knetstatd/motd $(DESTDIR)/usr/lib/motd.d/knetstatd

install-module:
	$(PUT) $(addprefix module/,$(MODULE_FILES)) -t $(DESTDIR)$(SOURCE)

# What install would put there: no second list of it that could differ. A configuration that was changed stays.
uninstall:  ## remove what `make install` has put there; DESTDIR= PREFIX= as there
	@all=$$(mktemp -d) && $(MAKE) --no-print-directory -s install DESTDIR="$$all" && cd "$$all" && \
	find . ! -type d | sed 's/^\.//' | while read -r file; do \
		case $$file in /etc/*) cmp -s ".$$file" "$(DESTDIR)$$file" || continue ;; esac; \
		rm -f "$(DESTDIR)$$file"; \
	done; \
	find "$(DESTDIR)$(PYTHONDIR)/knetstatd" -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null; \
	find . -depth -type d -path '*knetstat*' | sed 's/^\.//' | while read -r own; do \
		[ ! -d "$(DESTDIR)$$own" ] || rmdir --ignore-fail-on-non-empty "$(DESTDIR)$$own"; \
	done; rm -rf "$$all"

# Debian packages. inotify_simple is in no Debian release: its file is taken from PyPI, pinned, never committed.
TREE := build/deb/knetstatd-$(VERSION)

build/inotify_simple.py: debian/inotify-simple.txt
	rm -rf build/wheel
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --require-hashes \
		-r debian/inotify-simple.txt -d build/wheel
	$(PYTHON) -m zipfile -e build/wheel/*.whl build/wheel
	cp build/wheel/inotify_simple.py $@

# Without the corpora: ELF files without a source are not for Debian.
deb-tree: build/inotify_simple.py
	rm -rf "$(TREE)"
	mkdir -p "$(TREE)"
	git ls-files -z --cached --others --exclude-standard -- . ':!tests/fuzz/corpus' | \
		tar -c --null --ignore-failed-read -T - | tar -x -C "$(TREE)"
	install -D -m 644 build/inotify_simple.py -t "$(TREE)/vendor"

deb:  ## Debian packages for this machine's release, in build/deb
	$(call need,git dpkg-dev python3-pip)
	@dpkg-checkbuilddeps 2>/dev/null || { $(APT) update && $(APT) build-dep -y ./; }
	@$(MAKE) --no-print-directory deb-tree
	cd $(TREE) && PATH=/usr/sbin:/usr/bin:/sbin:/bin dpkg-buildpackage -us -uc
	@ls build/deb/*.deb

clean:  ## what the other targets made here (the cache of Debian roots stays: ~/.cache/knetstatd)
	rm -rf $(VENV) build dist mutants *.egg-info .mypy_cache .ruff_cache .pytest_cache .coverage
	find . -name __pycache__ -prune -exec rm -rf {} +
