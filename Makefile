# SPDX-License-Identifier: GPL-3.0-or-later
# Every target sets up what it needs. `make help` lists them.

NODES ?= 3
WORKLOADS ?= 2
BASE ?= fresh
WIRING ?= direct
# Further options for pytest, for example TESTS=tests/unit or PYTEST="-k redirect -x".
TESTS ?=
PYTEST ?=
SANITY ?=
# Releases of ansible-core for `make sanity` and `make release`.
CORES ?= 2.19

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check
APT_PACKAGES := $(shell sed -e 's/\#.*//' packages.apt)
# Scripts without a suffix that linters would not find.
SCRIPTS = $(shell grep -lsE '^\#!.*python' tests/lab/lab tests/demo/demo tests/bench/bench tests/vm/matrix tools/*)
COLLECTION := collections/ansible_collections/ebpf/overlay

export PATH := $(CURDIR)/$(BIN):$(PATH):/usr/sbin:/sbin
export PYTHONPATH := $(CURDIR)/collections
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg

.PHONY: help
help: ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

.PHONY: root
root:
	@if [ "$$(id -u)" -ne 0 ]; then \
	    echo "This target needs root: it creates network namespaces, mounts file systems and loads BPF programs." \
	         "Run it again as root." >&2; exit 1; fi

# ---------------------------------------------------------------------------------------------- set-up

.PHONY: setup
setup: packages $(VENV)/.dev ## install what the other targets need (apt, .venv)

# Enough for the lab and the playbooks, without the linters.
.PHONY: setup-lab
setup-lab: packages $(VENV)/.lab

.PHONY: packages
packages:
	@installed=" $$(dpkg-query -W -f '$${db:Status-Status}=$${Package} ' $(APT_PACKAGES) 2>/dev/null || true)"; \
	missing=; for package in $(APT_PACKAGES); do \
	    case "$$installed" in *" installed=$$package "*) ;; *) missing="$$missing $$package" ;; esac; done; \
	[ -n "$$missing" ] || exit 0; \
	if [ "$$(id -u)" -ne 0 ]; then \
	    echo "Missing packages:$$missing. Run 'make setup' once as root." >&2; exit 1; fi; \
	echo "Installing Debian packages:$$missing"; \
	export DEBIAN_FRONTEND=noninteractive; \
	install="apt-get install -qq -y --no-install-recommends -o Dpkg::Use-Pty=0 $$missing"; \
	compgen -G '/var/lib/apt/lists/*_Packages*' >/dev/null || apt-get update -qq; \
	$$install >/dev/null || { apt-get update -qq; $$install >/dev/null; }

$(VENV)/.lab: requirements.txt | packages
	@echo "Installing Python packages into $(VENV)"
	@[ -x $(BIN)/python ] || /usr/bin/python3 -m venv $(VENV)
	@$(PIP) -r requirements.txt
	@touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.lab
	@echo "Installing tools for tests and checks into $(VENV)"
	@$(PIP) -r requirements-dev.txt
	@touch $@

# ---------------------------------------------------------------------------------------------- the lab

.PHONY: lab-up
lab-up: root setup-lab ## a small cluster on this machine: NODES=3 WORKLOADS=2 BASE=fresh|ready WIRING=direct
	tests/lab/lab up --nodes $(NODES) --workloads $(WORKLOADS) --base $(BASE) --wiring $(WIRING)

.PHONY: lab-down
lab-down: root setup-lab ## take the cluster down
	tests/lab/lab down

.PHONY: demo
demo: root setup-lab ## roll the overlay out on the lab, prove the bypass, roll it back
	tests/demo/demo

# ---------------------------------------------------------------------------------------------- tests

# A killed run leaves its lab behind; the next one starts without it.
.PHONY: leftovers
leftovers: root setup
	@[ ! -x tests/lab/lab ] || tests/lab/lab down

.PHONY: test
test: root setup leftovers ## unit, program and lab tests: TESTS=path PYTEST="options"
	$(BIN)/python -m pytest -v $(PYTEST) $(TESTS)

.PHONY: soak
soak: root setup leftovers ## the same tests with full counts and durations (hours)
	OVERLAY_SOAK=1 $(BIN)/python -m pytest -v $(PYTEST) $(TESTS)

.PHONY: bench
bench: root setup ## latency and program cost, into build/bench.json
	@mkdir -p build
	tests/bench/bench

.PHONY: bench-exact
bench-exact: root setup ## instructions of each path, in virtual machines: BENCH_EXACT="trixie:rr:tcx,kernel,direct"
	tests/bench/bench-exact $(BENCH_EXACT)

.PHONY: matrix
matrix: root setup ## the programs on other kernels, in virtual machines
	tests/vm/matrix

.PHONY: wirings
wirings: root setup ## the overlay on links that not every kernel has, in virtual machines: IPIP, bond, VLAN, WireGuard, VRF
	tests/vm/wirings

# ---------------------------------------------------------------------------------------------- checks

.PHONY: lint
lint: setup lint-links lint-imports lint-generated lint-python lint-ansible lint-docs lint-licences ## every static check

.PHONY: lint-generated
lint-generated: setup
	@[ ! -x tools/generate ] || $(BIN)/python tools/generate --check

.PHONY: lint-imports
lint-imports: setup
	$(BIN)/python tools/check-imports

.PHONY: lint-links
lint-links:
	@for link in "files/bpf ../roles/node/files/bpf" "$(COLLECTION) ../../.." "playbooks/collections ../collections"; do \
	    set -- $$link; \
	    if [ "$$(readlink "$$1")" != "$$2" ]; then echo "$$1 must be a link to $$2." >&2; exit 1; fi; done
	@diff <(ls plugins/modules | sed -n 's/\.py$$//p' | sort) <(sed -n 's/^    - //p' meta/runtime.yml | sort) || \
	    { echo "The action group in meta/runtime.yml must name every module." >&2; exit 1; }
	@if compgen -G 'tests/sanity/ignore-*.txt' >/dev/null; then \
	    echo "tests/sanity must hold no ignore files." >&2; exit 1; fi

.PHONY: lint-python
lint-python: setup
	ruff check . $(SCRIPTS)
	ruff format --check . $(SCRIPTS)
	mypy $(COLLECTION)/plugins $(shell find tests -name '*.py' -not -path 'tests/lab/run*' -not -path 'tests/output/*')

.PHONY: lint-ansible
lint-ansible: setup
	ansible-lint --offline

.PHONY: lint-docs
lint-docs: setup
	antsibull-docs lint-collection-docs --plugin-docs --validate-collection-refs self .
	antsibull-changelog lint

.PHONY: lint-licences
lint-licences: setup
	reuse lint --quiet || reuse lint

.PHONY: sanity
sanity: setup ## ansible-test sanity, in build/sanity: CORES="2.19 2.20 2.21" SANITY="--test validate-modules"
	@for core in $(CORES); do echo "ansible-core $$core"; tools/with-core "$$core" tests/sanity/run $(SANITY); done

# ---------------------------------------------------------------------------------------------- products

.PHONY: build
build: setup ## the collection's archive, in build/, checked and installed: CORES="2.19 2.20 2.21"
	tools/release --unreleased build $(CORES)

.PHONY: release
release: setup ## the same, where version, changelog and tag agree
	tools/release build $(CORES)

.PHONY: docs
docs: setup ## the documents and the reference as a site, in build/docs/
	tools/site/build build/docs

.PHONY: clean
clean: ## remove everything that can be made again, .venv too
	@for run in tests/lab/run tests/lab/run-*; do \
	    [ ! -e "$$run" ] || OVERLAY_LAB=$$(expr "$$run" : 'tests/lab/run-\(.*\)' || true) tests/lab/lab down; done
	rm -rf build .ansible .cache .hypothesis .venv tests/lab/run* tests/output
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
