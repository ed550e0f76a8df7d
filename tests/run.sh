#!/bin/bash
# shellcheck disable=SC2317 # functions are called by name
#
# The tests, as named functions, each of which can run alone:
#
#   tests/run.sh c_unit            one
#   tests/run.sh asan tsan e2e     several, in this order
#   tests/run.sh check             the quick ones, under a minute when built
#   tests/run.sh all               what `make test` and CI run
#   tests/run.sh help              their names
#
# Stops at the first that fails. The output of each is in build/logs. The last
# line is "N passed, N failed": single tests where the function runs a framework,
# else the function itself. `make deps-test all` comes first.
set -euo pipefail
cd "$(dirname "$0")/.."

CHECK=(lint abi c_unit go)
ALL=(lint analyze abi c_unit asan tsan fuzz fault go upstream e2e)

# Unit tests that ThreadSanitizer cannot run, by name: those that fork.
TSAN_EXCLUDE=()

export GOFLAGS=-buildvcs=false GOWORK="$PWD/build/go.work" CGO_ENABLED=1
JOBS="$(nproc)"

# ------------------------------------------------------------------------- C

# The pinned S3 server, built once.
ensure_versitygw() {
	export VERSITYGW="$PWD/build/tools/versitygw"
	if [[ ! -x $VERSITYGW ]]; then
		mkdir -p build/tools
		GOBIN="$PWD/build/tools" GOWORK=off CGO_ENABLED=0 \
			go install github.com/versity/versitygw/cmd/versitygw@v1.8.0
	fi
}

# run_unit DIR [WRAPPER...]: runs the unit tests that were built in DIR.
run_unit() {
	local dir=$1 test name start
	shift
	for test in tests/unit/test_*.c; do
		name="$(basename "$test" .c)"
		if [[ " ${EXCLUDE:-} " == *" $name "* ]]; then
			echo "excluded: $name"
			continue
		fi
		echo "== $name"
		start=$SECONDS
		timeout 300 "$@" "$dir/unit/$name"
		echo "== $name: $((SECONDS - start)) s"
	done
}

# Random tests run fewer rounds: for `check`, and for builds that are slow.
fewer_rounds() {
	export US_ORACLE_COUNT=100 US_LIVE_COUNT=300 US_LIVE_COMMITS=50 US_LIVE_SECONDS=1
}

t_c_unit() {
	ensure_versitygw
	make -s -j"$JOBS" unit-tests
	run_unit build
}

t_asan() {
	ensure_versitygw
	fewer_rounds
	local flags="-fsanitize=address,undefined -fno-sanitize-recover=all"
	make -s -j"$JOBS" OUT=build/asan WERROR= EXTRA_LDFLAGS="$flags" \
		EXTRA_CFLAGS="$flags -fno-omit-frame-pointer -O1 -U_FORTIFY_SOURCE" unit-tests
	ASAN_OPTIONS=detect_leaks=1:strict_string_checks=1:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 run_unit build/asan
}

t_tsan() {
	ensure_versitygw
	fewer_rounds
	make -s -j"$JOBS" OUT=build/tsan WERROR= EXTRA_LDFLAGS=-fsanitize=thread \
		EXTRA_CFLAGS="-fsanitize=thread -O1 -U_FORTIFY_SOURCE" unit-tests
	# With much address randomization the tool's own mapping fails.
	local wrapper=()
	if setarch -R true 2>/dev/null; then
		wrapper=(setarch -R)
	fi
	EXCLUDE="${TSAN_EXCLUDE[*]:-}" TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1:die_after_fork=0:allocator_may_return_null=1 \
		run_unit build/tsan "${wrapper[@]}"
}

# Slow; not part of all.
t_valgrind() {
	fewer_rounds
	make -s -j"$JOBS" unit-tests
	run_unit build valgrind --quiet --error-exitcode=1 --leak-check=full --errors-for-leak-kinds=definite
}

t_clang() {
	make -s -j"$JOBS" OUT=build/clang CC=clang unit-tests
	run_unit build/clang
}

# The optimizer at its ends: what only works by accident shows.
t_optimize() {
	local level
	for level in 0 3; do
		make -s -j"$JOBS" OUT="build/O$level" WERROR= EXTRA_CFLAGS="-O$level -U_FORTIFY_SOURCE" unit-tests
		run_unit "build/O$level"
	done
}

# gcc's analyzer, and clang-tidy's checks for bugs.
t_analyze() {
	local checks=(
		'-*' 'bugprone-*' 'clang-analyzer-*'
		# what is a matter of taste, what -Wconversion sees, what wants Annex K
		-bugprone-easily-swappable-parameters -bugprone-reserved-identifier
		-bugprone-narrowing-conversions
		-clang-analyzer-security.insecureAPI.DeprecatedOrUnsafeBufferHandling
	)
	make -s -j"$JOBS" OUT=build/analyze WERROR=1 EXTRA_CFLAGS="-fanalyzer -DUS_ANALYZE" \
		build/analyze/libultrasimple.a
	echo "pass: gcc -fanalyzer"
	printf '%s\n' csrc/*.c csrc/*/*.c | xargs -P "$JOBS" -I '{}' \
		clang-tidy --quiet --warnings-as-errors='*' --checks="$(IFS=,; echo "${checks[*]}")" \
		'{}' -- -std=gnu17 -D_GNU_SOURCE -DUS_ANALYZE
	echo "pass: clang-tidy"
}

# The corpus of each fuzz target, and a few seconds of new inputs; always the same.
t_fuzz() {
	SEED="${SEED:-1}" DURATION="${DURATION:-2s}" tests/fuzz/run.sh
}

t_fault() {
	ensure_versitygw
	tests/fault/run.sh
}

# ------------------------------------------------------------------------ Go

t_go() {
	local packages
	mapfile -t packages < <(go list ./cgo/... ./tests/... | grep -v /e2e)
	go test -race -v -timeout 10m "${packages[@]}"
}

# cgo's expensive pointer checks. Recompiles the runtime; not part of all.
t_cgocheck() {
	GOEXPERIMENT=cgocheck2 go test -v ./cgo/...
}

# Upstream's own tests of what is patched. Those in tests/upstream-known-failures.txt
# fail without a patch, too.
t_upstream() {
	local skip reap="$PWD/build/tools/subreaper"
	mkdir -p build/tools
	gcc -std=gnu17 -Wall -Wextra -O2 -o "$reap" tests/subreaper.c
	skip="$(sed -e 's/#.*//' -e 's/[[:space:]]*$//' -e '/^$/d' tests/upstream-known-failures.txt | paste -sd '|')"
	cd build/litestream
	"$reap" go test -v -timeout 10m -skip "${skip:-^$}" ./cmd/litestream/...
	"$reap" go test -v -timeout 10m -run '^TestStore' .
}

t_e2e() {
	ensure_versitygw
	go test -v -count=1 -timeout 30m ./tests/e2e/...
}

# Tenants and replicator killed at random, every object audited (docs/HACKING.md). What
# e2e runs for half a minute, for DURATION.
t_torture() {
	ensure_versitygw
	go test -v -count=1 -timeout 0 -run '^TestTorture$' ./tests/e2e/
}

# A day and an hour by a fast clock, some minutes by ours: CYCLES, SEED. e2e has the
# beginning of it; the whole is not part of all.
t_day() {
	ensure_versitygw
	CYCLES="${CYCLES:-3000}" go test -v -count=1 -timeout 60m -run '^Test35Day$' ./tests/e2e |
		sed -E 's/^ +p35_day_test.go:[0-9]+: /day: /'
}

# Without a line that upholds an invariant a test is red, for each of many: ONLY.
t_mutations() {
	ensure_versitygw
	tests/mutations/run.sh
}

# ------------------------------------------------------------------- contracts

# is_hardened FILE: loaded anywhere, nothing writable once it is linked, no code on the stack.
is_hardened() {
	local headers dynamic pattern
	headers="$(readelf -hlW "$1")"
	dynamic="$(readelf -dW "$1")"
	for pattern in 'Type: +DYN' ' GNU_RELRO ' ' GNU_STACK .* RW +0x'; do
		grep -qE "$pattern" <<<"$headers" || { echo "$1: no $pattern"; return 1; }
	done
	grep -qE '\(FLAGS_1\).* NOW' <<<"$dynamic" || { echo "$1: not bound at start"; return 1; }
	! grep -q TEXTREL <<<"$dynamic" || { echo "$1: relocations in its code"; return 1; }
	echo "pass: $1 is hardened"
}

# The header compiles alone, nothing but what it declares can be seen, and a
# program that has it and the archive works.
t_abi() {
	local header=csrc/include/ultrasimple.h so=build/libultrasimple.so.1
	local declared exported foreign needed symbol
	make -s -j"$JOBS" build/libultrasimple.a "$so"

	echo '#include "ultrasimple.h"' |
		gcc -std=c11 -pedantic-errors -Wall -Wextra -Werror -fsyntax-only -Icsrc/include -x c -
	echo '#include "ultrasimple.h"' |
		clang -std=c++17 -pedantic-errors -Wall -Wextra -Werror -fsyntax-only -Icsrc/include -x c++ -
	echo "pass: header as C11 and C++17"

	declared="$(gcc -fpreprocessed -dD -E -P "$header" 2>/dev/null | tr '\n' ' ' | grep -oP '\bUS_API\b[^;(]*?\K\bus_\w+(?=\s*\()' | sort)"
	exported="$(nm -D --defined-only "$so" | awk '$2 != "A" { sub(/@.*/, "", $3); print $3 }' | sort)"
	diff <(echo "$declared") <(echo "$exported")
	echo "pass: exported symbols are those of the header"

	foreign="$(nm -g --defined-only build/libultrasimple.a | awk 'NF == 3 && $3 !~ /^us_/ { print $3 }')"
	[[ -z $foreign ]] || { echo "symbols without us_:" "$foreign"; return 1; }
	echo "pass: symbols of the archive begin with us_"

	is_hardened "$so"
	is_hardened bin/litestream
	readelf -dW bin/litestream | grep -qE '\(FLAGS_1\).* PIE' || { echo "bin/litestream is no PIE"; return 1; }
	needed="$(nm -u build/libultrasimple.a | awk '{ print $2 }' | sort -u)"
	for symbol in __stack_chk_fail __memcpy_chk __snprintf_chk; do
		grep -qx "$symbol" <<<"$needed" || { echo "the archive does not use $symbol"; return 1; }
	done
	echo "pass: the archive checks its stack and its copies"

	if [[ -e tests/abi/baseline.abi ]]; then
		abidiff --headers-dir2 csrc/include --no-added-syms tests/abi/baseline.abi "$so"
		echo "pass: no change against tests/abi/baseline.abi"
	fi

	tests/abi/run.sh
}

# Writes the baseline that abi compares with. For releases.
t_abi_baseline() {
	make -s -j"$JOBS" build/libultrasimple.so.1
	mkdir -p tests/abi
	abidw --headers-dir csrc/include --no-corpus-path --no-comp-dir-path \
		--out-file tests/abi/baseline.abi build/libultrasimple.so.1
}

t_lint() {
	tests/lint.sh
	mapfile -t scripts < <(find tests .ci -name '*.sh' -o -path .ci/run)
	shellcheck "${scripts[@]}"
	echo "pass: shellcheck"

	local unformatted
	unformatted="$(gofmt -l cgo tests)"
	[[ -z $unformatted ]] || { echo "gofmt:" "$unformatted"; return 1; }
	echo "pass: gofmt"
	GOWORK=off go vet ./...
	echo "pass: go vet"
	GOWORK=off CGO_ENABLED=0 go build ./...
	GOWORK=off CGO_ENABLED=0 go vet ./...
	echo "pass: builds without cgo"
}

# ---------------------------------------------------------------------- runner

passed=0 failed=0 rc=0
summary=()

# count PATTERN FILE: lines of FILE that match.
count() { grep -cE "$1" "$2" || true; }

# run NAME: runs t_NAME, and sets rc. Never call it in a condition (if, ||, &&):
# bash then ignores `set -e` in all that is called, and failures pass unseen.
run() {
	local log="build/logs/$1.log" start=$SECONDS ok bad
	mkdir -p build/logs
	printf '\n==== %s\n' "$1"
	set +e
	(
		set -e
		"t_$1"
	) 2>&1 | tee "$log" | grep --line-buffered -vE '^(=== (RUN|PAUSE|CONT|NAME)|\[ (RUN|      OK) | +[a-z0-9_]+\.go:[0-9]+: |[0-9]{4}/[0-9]{2}/[0-9]{2} |time=)'
	rc=${PIPESTATUS[0]}
	set -e
	ok="$(count '^ *--- PASS: |^\[       OK \]|^pass: ' "$log")"
	bad="$(grep -oE '^ *--- FAIL: [^ ]+|^\[  FAILED  \] [a-zA-Z_0-9]+$' "$log" | sort -u | wc -l)" || true
	if [[ $rc -eq 0 ]]; then
		passed=$((passed + (ok > 0 ? ok : 1)))
		summary+=("$(printf 'ok    %-10s %4d s  %s tests' "$1" $((SECONDS - start)) "$ok")")
		return
	fi
	passed=$((passed + ok))
	failed=$((failed + (bad > 0 ? bad : 1)))
	summary+=("$(printf 'FAIL  %-10s %4d s  see %s' "$1" $((SECONDS - start)) "$log")")
	grep -E -A20 '^ *--- FAIL: |^\[  FAILED  \]|panic: |ERROR: .*Sanitizer' "$log" | head -200 || true
}

names() {
	case "$1" in
	check) printf '%s\n' "${CHECK[@]}" ;;
	all) printf '%s\n' "${ALL[@]}" ;;
	*) echo "$1" ;;
	esac
}

KNOWN=" c_unit asan tsan valgrind clang optimize analyze fuzz fault go cgocheck upstream e2e torture day mutations abi abi_baseline lint "

main() {
	local name step
	if [[ $# -eq 0 || $1 == help || $1 == -h || $1 == --help ]]; then
		echo "usage: tests/run.sh NAME..."
		echo "names: check all$KNOWN"
		exit 0
	fi
	for name in "$@"; do
		if [[ $name == check ]]; then
			fewer_rounds
			export EXCLUDE="test_read_live test_restore_place" # they take their time
		fi
		for step in $(names "$name"); do
			if [[ $KNOWN != *" $step "* ]]; then
				echo "tests/run.sh: no such test: $step; known are: check all$KNOWN" >&2
				exit 2
			fi
			run "$step"
			[[ $rc -eq 0 ]] || break 2
		done
	done
	printf '\n'
	printf '%s\n' "${summary[@]}"
	echo "$passed passed, $failed failed"
	[[ $rc -eq 0 ]] || exit 1
}

main "$@"
