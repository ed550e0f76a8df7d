# Builds bin/litestream: the C library, then the pinned Litestream with patches/.
#
#   make          packages (Debian), build/libultrasimple.a, bin/litestream
#   make demo     a fleet, replicated and restored before your eyes
#   make test     everything CI runs; make check is the quick part
#   make bench    tests/bench
#   make faults   every system call, allocation and answer fails in turn: SEED, DURATION
#   make torture  tenants and replicator killed at random: SEED, DURATION, WRITERS, DATABASES
#   make day      a day by a fast clock (CYCLES, SEED)
#   make mutations  which test sees it when a line is gone (ONLY=I4)
#   make fuzz     every fuzz target for ten minutes; or DURATION=30s SEED=1 TARGET=fuzz_wal
#   make coverage how much of csrc/ all tests execute; V=1 for each line they do not
#   make clean
#
# Variables: WERROR=1 makes warnings errors. OUT, EXTRA_CFLAGS and EXTRA_LDFLAGS
# give another build of the library beside the first (tests/run.sh uses them for
# sanitizers). CC is the C compiler. V=1 shows the commands.

SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -ec
.DELETE_ON_ERROR:
.SUFFIXES:
MAKEFLAGS += --no-builtin-rules

ifeq ($(origin CC),default)
CC := gcc
endif
OUT := build
Q := $(if $(V),,@)

APT_BUILD := gcc libc6-dev make libcurl4-openssl-dev liblz4-dev libsqlite3-dev libssl-dev \
	libexpat1-dev patch pkg-config
APT_TEST := libcmocka-dev clang clang-tidy libclang-rt-14-dev lz4 sqlite3 python3-lz4 valgrind \
	strace jq shellcheck abigail-tools curl

.PHONY: all
all: deps bin/litestream

# ------------------------------------------------------------------- packages

# Installs what dpkg does not know as installed; without any, apt is not called.
define apt_install
@command -v dpkg-query >/dev/null || { echo "not a Debian system: packages are yours to install: $(1)"; exit 0; }; \
have=" $$(dpkg-query -W -f='$${db:Status-Status}:$${Package}\n' $(1) 2>/dev/null | sed -n 's/^installed://p' | tr '\n' ' ')" || true; \
missing=; \
for p in $(1); do case "$$have" in *" $$p "*) ;; *) missing="$$missing $$p" ;; esac; done; \
[ -n "$$missing" ] || exit 0; \
sudo=; \
if [ "$$(id -u)" != 0 ]; then \
	command -v sudo >/dev/null || { echo "missing packages; as root, run: apt-get install -y$$missing" >&2; exit 1; }; \
	sudo=sudo; \
fi; \
echo "installing missing packages:$$missing"; \
$$sudo apt-get update -q && \
$$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $$missing
endef

.PHONY: deps deps-test
deps:
	$(call apt_install,$(APT_BUILD))
	@command -v go >/dev/null || { echo "Go 1.26 or later is needed: https://go.dev/dl" >&2; exit 1; }

deps-test: deps
	$(call apt_install,$(APT_TEST))

# ------------------------------------------------------------------ C library

WARNINGS := -Wall -Wextra -Wshadow -Wconversion -Wstrict-prototypes -Wmissing-prototypes -Wundef \
	-Wvla -Wformat=2 -Wcast-qual -Wimplicit-fallthrough
# tests/run.sh abi checks that these arrive in what is built. With packed relocations
# a position-independent bin/litestream is as small as a fixed one, in memory, too.
HARDENING := -D_FORTIFY_SOURCE=3 -fstack-protector-strong -fstack-clash-protection \
	$(if $(filter x86_64,$(shell uname -m)),-fcf-protection)
HARDENING_LD := -Wl,-z,relro,-z,now,-z,noexecstack
US_CFLAGS = -std=gnu17 -O2 -g -fPIC -fvisibility=hidden -D_GNU_SOURCE $(HARDENING) \
	-ffile-prefix-map=$(CURDIR)/= $(WARNINGS) $(if $(WERROR),-Werror) $(EXTRA_CFLAGS)
US_LIBS := -lcurl -llz4 -lsqlite3 -lssl -lcrypto -lexpat -lm -pthread

SOURCES := $(sort $(wildcard csrc/*.c csrc/*/*.c))
OBJECTS := $(SOURCES:%.c=$(OUT)/%.o)
UNIT_SOURCES := $(sort $(wildcard tests/unit/test_*.c))
UNIT_TESTS := $(UNIT_SOURCES:tests/unit/%.c=$(OUT)/unit/%)
FUZZ_SOURCES := $(sort $(wildcard tests/fuzz/fuzz_*.c))
FUZZ_TARGETS := $(FUZZ_SOURCES:tests/fuzz/%.c=$(OUT)/%)

# Files that hold a value and change only with it, so that what depends on a
# command line or on a list of files is rebuilt when the line or the list changes.
.PHONY: FORCE
FORCE:
define keep
@mkdir -p $(@D); echo '$(1)' | cmp -s - $@ || echo '$(1)' >$@
endef

$(OUT)/cflags: FORCE
	$(call keep,$(CC) $(US_CFLAGS) $(EXTRA_LDFLAGS))
$(OUT)/sources: FORCE
	$(call keep,$(SOURCES))

$(OUT)/%.o: %.c $(OUT)/cflags
	@mkdir -p $(@D)
	@echo "cc $<"
	$(Q)$(CC) $(US_CFLAGS) -MMD -MP -c -o $@ $<

$(OUT)/libultrasimple.a: $(OBJECTS) $(OUT)/sources
	@rm -f $@
	@echo "ar $@"
	$(Q)ar rcsD $@ $(OBJECTS)

$(OUT)/libultrasimple.so.1: $(OBJECTS) $(OUT)/sources csrc/ultrasimple.map
	@echo "ld $@"
	$(Q)$(CC) -shared $(EXTRA_LDFLAGS) -Wl,-soname,libultrasimple.so.1 -Wl,--version-script=csrc/ultrasimple.map \
		-Wl,--no-undefined-version -Wl,-z,defs $(HARDENING_LD) -o $@ $(OBJECTS) $(US_LIBS)

.PHONY: unit-tests
unit-tests: $(UNIT_TESTS)
$(OUT)/unit/%: tests/unit/%.c $(OUT)/libultrasimple.a
	@mkdir -p $(@D)
	@echo "cc $<"
	$(Q)$(CC) $(US_CFLAGS) -Icsrc -Icsrc/include -MMD -MP -o $@ $< $(OUT)/libultrasimple.a \
		$(EXTRA_LDFLAGS) -lcmocka $(US_LIBS)

# tests/fuzz/run.sh says with which compiler and sanitizers.
.PHONY: fuzz-targets
fuzz-targets: $(FUZZ_TARGETS)
$(OUT)/fuzz_%: tests/fuzz/fuzz_%.c $(OUT)/libultrasimple.a
	@echo "cc $<"
	$(Q)$(CC) $(US_CFLAGS) -fsanitize=fuzzer -Icsrc -Icsrc/include -MMD -MP -o $@ $< \
		$(OUT)/libultrasimple.a $(EXTRA_LDFLAGS) $(US_LIBS)

-include $(OBJECTS:.o=.d) $(UNIT_TESTS:=.d) $(FUZZ_TARGETS:=.d)

# ----------------------------------------------------------------- Litestream

LITESTREAM := github.com/benbjohnson/litestream
LITESTREAM_VERSION := $(shell awk '$$1 == "$(LITESTREAM)" { print $$2 }' go.mod)
VERSION = $(LITESTREAM_VERSION)+multidb.$(shell cat VERSION 2>/dev/null || git rev-list --count HEAD 2>/dev/null || echo 0)
PATCHES := $(sort $(wildcard patches/*.patch))
GO_SOURCES := $(sort $(wildcard cgo/*.go cgo/*.h cgo/*.c))

# GOFLAGS is given a value: an empty one would let `go env -w GOFLAGS=...` through,
# and a -mod=mod from there breaks workspaces. The tags are those of upstream's
# releases.
GO_ENV := GOFLAGS=-buildvcs=false CGO_ENABLED=1
GO_TAGS := osusergo,netgo,sqlite_omit_load_extension

build/litestream.version: FORCE
	$(call keep,$(LITESTREAM_VERSION) $(PATCHES))
build/go.list: FORCE
	$(call keep,$(VERSION) $(filter-out cgo/archive_hash.go,$(GO_SOURCES)))

# The pinned source, patched. Made beside its place and renamed, so a patch that
# does not apply leaves no half-patched tree behind.
build/litestream.stamp: build/litestream.version $(PATCHES)
	@rm -rf build/litestream build/litestream.tmp
	@$(GO_ENV) GOWORK=off go mod download $(LITESTREAM)
	@dir="$$($(GO_ENV) GOWORK=off go list -m -f '{{.Dir}}' $(LITESTREAM))"; \
		cp -R --no-preserve=mode,ownership "$$dir" build/litestream.tmp
	@for p in $(PATCHES); do \
		echo "patch $$p"; \
		patch -d build/litestream.tmp -p1 --fuzz=0 --silent --no-backup-if-mismatch <"$$p" || exit 1; \
	done
	@mv build/litestream.tmp build/litestream
	@touch $@

build/go.work: Makefile
	@mkdir -p $(@D)
	@printf 'go 1.26.0\n\nuse (\n\t..\n\t./litestream\n)\n' >$@

# Go does not look at the archive that a cgo package links: its hash in a source
# file makes it do so. A variable, as a constant leaves no trace in the compiled
# package, and an unchanged one is not linked again.
cgo/archive_hash.go: build/libultrasimple.a
	@hash="$$(sha256sum <$<)"; \
	printf '// Code generated by make. DO NOT EDIT.\n\npackage multidb\n\nvar archiveHash = "%s"\n' "$${hash%% *}" >$@.tmp; \
	if cmp -s $@.tmp $@; then rm $@.tmp; else mv $@.tmp $@; fi

bin/litestream: build/libultrasimple.a cgo/archive_hash.go $(GO_SOURCES) build/go.list \
		build/litestream.stamp build/go.work go.mod go.sum | deps
	@echo "go build $@ $(VERSION)"
	$(Q)$(GO_ENV) GOWORK=$(CURDIR)/build/go.work go build -trimpath -buildmode=pie -tags $(GO_TAGS) \
		-ldflags '-X main.Version=$(VERSION) -extldflags "$(HARDENING_LD),-z,pack-relative-relocs"' -o $@ $(LITESTREAM)/cmd/litestream
	@touch $@

# Objects need the packages' headers.
$(OBJECTS): | $(if $(filter build,$(OUT)),deps)
build/litestream.stamp: | deps

# ---------------------------------------------------------------------- tests

.PHONY: demo test check bench faults torture coverage fuzz day mutations clean
demo: all
	tests/demo.sh

test: deps-test all
	tests/run.sh all

check: deps-test all
	tests/run.sh check

bench: deps-test all
	tests/bench/run.sh

faults: deps-test all
	SEED='$(SEED)' DURATION='$(or $(DURATION),20m)' tests/run.sh fault

torture: deps-test all
	SEED='$(SEED)' DURATION='$(DURATION)' WRITERS='$(WRITERS)' DATABASES='$(DATABASES)' tests/run.sh torture

coverage: deps-test all
	tests/coverage/run.sh

fuzz: deps-test all
	tests/fuzz/run.sh

day: deps-test all
	tests/run.sh day

mutations: deps-test all
	tests/run.sh mutations

clean:
	rm -rf build bin cgo/archive_hash.go
