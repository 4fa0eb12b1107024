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

RUN_PACKAGES := python3 python3-venv python3-systemd python3-pyudev python3-sdnotify dkms kmod openssl zstd xz-utils
TEST_PACKAGES := $(RUN_PACKAGES) git gcc libc6-dev mmdebstrap systemd-container apt-utils dpkg-dev qemu-system-x86 busybox-static cpio \
	util-linux procps xz-utils scdoc groff-base bash zsh fish

.PHONY: help setup setup-test module-install module-uninstall run man test unit coverage container container-slow test-vm bench clean

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

module-install: setup  ## put knetstat's source under /usr/src and into DKMS
	@if ! cmp -s module/knetstat.c $(SOURCE)/knetstat.c || ! cmp -s module/compat.h $(SOURCE)/compat.h; then \
		install -d $(SOURCE) && install -m 644 $(addprefix module/,$(MODULE_FILES)) $(SOURCE)/ && \
		echo "knetstat $(VERSION) is in $(SOURCE)"; fi
	@[ -e /var/lib/dkms/knetstat/$(VERSION)/source ] || dkms add knetstat/$(VERSION)

module-uninstall:  ## take it out of DKMS, off every kernel, and delete its source
	if [ -e /var/lib/dkms/knetstat/$(VERSION) ]; then dkms remove knetstat/$(VERSION) --all; fi
	rm -rf $(SOURCE) /var/lib/dkms/knetstat/$(VERSION)
	-rmdir --ignore-fail-on-non-empty /var/lib/dkms/knetstat

run: setup module-install  ## run the daemon on this machine's kernels, in the foreground
	$(BIN)/knetstatd --foreground

# scdoc(5) turns man/NAME.SECTION.scd into a page.
man: $(patsubst man/%.scd,build/man/%,$(wildcard man/*.scd))  ## build the manual pages, in build/man

build/man/%: man/%.scd
	@command -v scdoc >/dev/null || { $(APT) update && $(APT) install -y --no-install-recommends scdoc; }
	@mkdir -p $(@D)
	scdoc <$< >$@.new && mv $@.new $@

unit: setup-test  ## unit tests and linters (seconds)
	$(PYTEST) tests/unit $(ARGS)

# The planner and everything that reads what others wrote.
PARSERS := plan names files config sockets shellfile dkmsconf dkms grub bootloader transaction unpack symvers elf ko depmod target \
	checks verify diagnose compare traps packages der trust modprobe initrd signed placement
comma := ,
coverage: setup-test  ## unit tests; fails unless the planner and all parsers are covered by branch
	$(PYTEST) tests/unit --cov=knetstatd --cov-branch --cov-report= $(ARGS)
	$(BIN)/python -m coverage report --fail-under=100 \
		--include=$(subst $() $(),$(comma),$(foreach m,$(PARSERS),knetstatd/$(m).py))

container: setup-test  ## tests in Debian containers with systemd, real dkms, real kernels (minutes)
	$(PYTEST) tests/container $(ARGS)

container-slow: setup-test  ## 50 random kills, 50 installations beside the hook, other people's modules (hours)
	$(PYTEST) tests/container -m slow $(ARGS)

test-vm: setup-test  ## the bundled module on every kernel series, in virtual machines (half an hour)
	$(PYTEST) tests/vm $(ARGS)

test: setup-test  ## all tests but the slow ones
	$(PYTEST) -m 'not slow' $(ARGS)

bench: setup-test  ## the budgets, as ratios measured in one run
	$(BIN)/python -m bench $(ARGS)

clean:  ## what the other targets made here (the cache of Debian roots stays: ~/.cache/knetstatd)
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .coverage
	find . -name __pycache__ -prune -exec rm -rf {} +
