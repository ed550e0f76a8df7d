#!/bin/bash
# shellcheck disable=SC2317 # functions are called by name
#
# How much of csrc/ all tests together execute (make coverage).
#
#   tests/coverage/run.sh               builds, runs everything, reports
#   tests/coverage/run.sh STEP...       these of: build unit fuzz go abi fault e2e report
#
# Counts of an earlier run stay until build, which removes them: after a change to one
# test, `tests/coverage/run.sh unit report` is enough.
#
#   UNIT   unit tests to run, by name (all)
#   E2E    what of e2e to run, as go test -run takes it (all)
#   V=1    the report also goes to the terminal with all unreached lines; it is always in
#          build/coverage/report.txt
#
# The library is compiled without optimization and with gcov's counters. Processes that
# are killed lose theirs. A test that fails is reported, and counts all the same; the
# exit status is 1 then.
#
# What tests/coverage/report.go says about lines that cannot be reached:
# a comment that begins with "unreached:" and gives the reason.
set -euo pipefail
cd "$(dirname "$0")/../.."

OUT=build/coverage
ROOT="$PWD"
TREE="$ROOT/$OUT/tree"
FLAGS="--coverage -fprofile-update=atomic -O0 -U_FORTIFY_SOURCE -DCURL_DISABLE_TYPECHECK"
export GOFLAGS=-buildvcs=false CGO_ENABLED=1 GCOV_ERROR_FILE=/dev/null
export VERSITYGW="$ROOT/build/tools/versitygw"
failed=()

# try NAME COMMAND...: its output goes to a log.
try() {
	local name=$1 start=$SECONDS rc=0
	shift
	"$@" >"$OUT/$name.log" 2>&1 || rc=$?
	printf '%-24s %s, %d s\n' "$name" "$([[ $rc -eq 0 ]] && echo ok || echo "FAILED, see $OUT/$name.log")" $((SECONDS - start))
	[[ $rc -eq 0 ]] || failed+=("$name")
}

# A copy of what Go builds, in which the instrumented archive stands in the place of
# the archive, and the programs write their counters before they end: Go's exit does not
# run what libgcov left to exit(3).
make_tree() {
	rm -rf "$TREE"
	mkdir -p "$TREE/build"
	cp -R cgo go.mod go.sum "$TREE/"
	ln -s "$ROOT/csrc" "$TREE/csrc"
	ln -s "$ROOT/$OUT/libultrasimple.a" "$TREE/build/libultrasimple.a"
	cp -R build/litestream "$TREE/build/litestream"
	cp build/go.work "$TREE/build/"
	cat >"$TREE/cgo/coverage.go" <<-'GO'
		package multidb

		// #cgo LDFLAGS: -lgcov
		// void __gcov_dump(void);
		import "C"
		import "os"

		func WriteCounters() { C.__gcov_dump() }

		func Exit(code int) { WriteCounters(); os.Exit(code) }
	GO
	cat >"$TREE/cgo/coverage_test.go" <<-'GO'
		package multidb

		import "testing"

		func TestMain(m *testing.M) { Exit(m.Run()) }
	GO
	sed -i -e 's/os\.Exit(/multidb.Exit(/' -e 's/^func main() {$/&\n\tdefer multidb.WriteCounters()/' \
		"$TREE/build/litestream/cmd/litestream/main.go"
}

step_build() {
	rm -rf "$OUT/csrc"
	make -s -j"$(nproc)" OUT="$OUT" WERROR= EXTRA_CFLAGS="$FLAGS" EXTRA_LDFLAGS=--coverage unit-tests
	# Processes that run as nobody write their counters, too.
	find "$OUT/csrc" -name '*.gcno' | sed 's/gcno$/gcda/' | xargs touch
	find "$OUT/csrc" -name '*.gcda' -exec chmod 666 {} +
	make_tree
	GOWORK="$TREE/build/go.work" go build -C "$TREE" -tags osusergo,netgo,sqlite_omit_load_extension \
		-ldflags "-X main.Version=$(bin/litestream version)" -o "$ROOT/$OUT/litestream" github.com/benbjohnson/litestream/cmd/litestream
}

step_unit() {
	local test name
	for test in tests/unit/test_*.c; do
		name="$(basename "$test" .c)"
		[[ -z ${UNIT:-} || " $UNIT " == *" $name "* ]] || continue
		US_ORACLE_COUNT=200 US_LIVE_COUNT=500 US_LIVE_COMMITS=100 US_LIVE_SECONDS=2 \
			try "$name" timeout 900 "$OUT/unit/$name"
	done
}

step_fuzz() {
	local target name
	for target in tests/fuzz/fuzz_*.c; do
		name="$(basename "$target" .c)"
		[[ -d tests/fuzz/corpus/$name ]] || continue
		gcc -std=gnu17 -D_GNU_SOURCE -O1 -g -Icsrc -Icsrc/include -o "$OUT/$name" "$target" tests/fuzz/feed.c \
			"$OUT/libultrasimple.a" --coverage -lcurl -llz4 -lsqlite3 -lssl -lcrypto -lexpat -lm -pthread
		try "$name" timeout 900 "$OUT/$name" "tests/fuzz/corpus/$name"/*
	done
}

step_go() {
	GOWORK="$TREE/build/go.work" try cgo go test -C "$TREE" -count=1 -timeout 15m -v ./cgo/...
}

step_abi() {
	ARCHIVE="$OUT/libultrasimple.a -lgcov" try abi tests/abi/run.sh
}

step_fault() {
	[[ -e tests/fault/run.sh ]] || return 0
	try fault env OUT="$OUT" EXTRA_CFLAGS="$FLAGS" EXTRA_LDFLAGS=--coverage tests/fault/run.sh
}

step_e2e() {
	LITESTREAM_BIN="$ROOT/$OUT/litestream" GOWORK="$ROOT/build/go.work" \
		try e2e go test -v -count=1 -timeout 60m -run "${E2E:-.}" ./tests/e2e/...
}

step_report() {
	GOWORK=off go run ./tests/coverage "$OUT" >"$OUT/report.txt"
	if [[ -n ${V:-} ]]; then
		cat "$OUT/report.txt"
	else
		sed '/^unreached$/,$d' "$OUT/report.txt"
		echo "unreached lines and branches: $OUT/report.txt"
	fi
}

main() {
	local step steps=("$@")
	[[ $# -gt 0 ]] || steps=(build unit fuzz go abi fault e2e report)
	mkdir -p "$OUT"
	for step in "${steps[@]}"; do
		"step_$step"
	done
	[[ ${#failed[@]} -eq 0 ]] || {
		echo "failed: ${failed[*]}"
		exit 1
	}
}

main "$@"
