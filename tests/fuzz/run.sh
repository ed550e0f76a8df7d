#!/bin/bash
#
# Runs the fuzz targets: each over its corpus first, then over new inputs.
#
#   tests/fuzz/run.sh
#
# Variables:
#   DURATION  of each target: 30, 30s or 10m (the default)
#   SEED      makes a run repeatable: it begins with the committed corpus alone. Without
#             it the seed is random, what earlier runs have found (in build/fuzz/corpus)
#             is used, too, and the targets in Go have their turn (they take no seed)
#   TARGET    one of them by name, as fuzz_wal or FuzzConfig
#
# tests/fuzz/fuzz_NAME.c is a target, with its corpus in tests/fuzz/corpus/fuzz_NAME
# and, if there is one, its dictionary fuzz_NAME.dict beside it. Func FuzzNAME in cgo/
# is one, too. Exits with 1 if any of them failed, having named what reproduces it:
# run build/fuzz/fuzz_NAME with that file.
set -euo pipefail
cd "$(dirname "$0")/../.."

OUT=build/fuzz
duration="${DURATION:-10m}"
seed="${SEED:-$RANDOM$RANDOM}"
case "$duration" in
*m) seconds=$((${duration%m} * 60)) ;;
*) seconds=$((${duration%s})) ;;
esac

# One input may take this long (a slow machine that has other work, too).
INPUT_SECONDS=30

# field NAME FILE: the last number after NAME.
field() { grep -oP "$1\\K\\d+" "$2" | tail -1 || true; }

build() {
	local flags="-fsanitize=address,undefined -fno-sanitize-recover=all"
	make -s -j"$(nproc)" OUT="$OUT" CC=clang WERROR= EXTRA_LDFLAGS="$flags" \
		EXTRA_CFLAGS="$flags -fsanitize=fuzzer-no-link -fno-omit-frame-pointer -O1 -U_FORTIFY_SOURCE -DUS_DEBUG" fuzz-targets
}

# Where the targets make their files: memory, if there is any.
scratch=
make_scratch() {
	local base=/dev/shm
	[[ -w $base ]] || base="${TMPDIR:-/tmp}"
	scratch="$(mktemp -d "$base/us-fuzz-XXXXXX")"
	trap 'rm -rf "$scratch"' EXIT
	mkdir "$scratch/files"
}

run_c() {
	local name=$1 log="$OUT/$1.log" found="$scratch/$1" rc=0 options=()
	[[ -n ${SEED:-} ]] || found="$OUT/corpus/$name"
	mkdir -p "$found"
	local corpus=("$found")
	[[ ! -d tests/fuzz/corpus/$name ]] || corpus+=("tests/fuzz/corpus/$name")
	[[ ! -e tests/fuzz/$name.dict ]] || options+=("-dict=tests/fuzz/$name.dict")
	TMPDIR="$scratch/files" UBSAN_OPTIONS=print_stacktrace=1 "$OUT/$name" -seed="$seed" \
		-max_total_time="$seconds" -timeout="$INPUT_SECONDS" -print_final_stats=1 \
		-artifact_prefix="$OUT/$name-" "${options[@]}" "${corpus[@]}" >"$log" 2>&1 || rc=$?
	printf '%-14s seed %s: %s inputs in %d s, %s of %s edges, %s features, corpus of %s\n' "$name" \
		"$seed" "$(field 'stat::number_of_executed_units: *' "$log")" "$seconds" \
		"$(field 'cov: ' "$log")" "$(field 'Loaded 1 modules *\(' "$log")" "$(field 'ft: ' "$log")" \
		"$(field 'corp: ' "$log")"
	if [[ $rc -ne 0 ]]; then
		grep -vE '^#[0-9]+\s+(NEW|REDUCE|RELOAD|pulse|INITED)' "$log" | tail -60
	fi
	return "$rc"
}

run_go() {
	local name=$1 log="$OUT/$1.log" rc=0
	GOFLAGS=-buildvcs=false GOWORK="$PWD/build/go.work" CGO_ENABLED=1 \
		go test -run '^$' -fuzz "^$name\$" -fuzztime "${seconds}s" ./cgo >"$log" 2>&1 || rc=$?
	printf '%-14s %s inputs in %d s, %s interesting\n' "$name" "$(field 'execs: ' "$log")" "$seconds" \
		"$(field 'total: ' "$log")"
	[[ $rc -eq 0 ]] || tail -60 "$log"
	return "$rc"
}

main() {
	local name failed=() targets=()
	for name in tests/fuzz/fuzz_*.c; do
		targets+=("$(basename "$name" .c)")
	done
	if [[ -z ${SEED:-} ]]; then
		mapfile -t -O "${#targets[@]}" targets < <(grep -hoP '^func \KFuzz\w+' cgo/*_test.go)
	fi
	if [[ -n ${TARGET:-} ]]; then
		[[ " ${targets[*]} " == *" $TARGET "* ]] || {
			echo "no such target: $TARGET; there are: ${targets[*]}" >&2
			exit 2
		}
		targets=("$TARGET")
	fi
	build
	make_scratch
	for name in "${targets[@]}"; do
		if [[ $name == Fuzz* ]]; then
			run_go "$name" || failed+=("$name")
		else
			run_c "$name" || failed+=("$name")
		fi
		[[ " ${failed[*]:-} " == *" $name "* ]] || echo "pass: $name"
	done
	for name in "${failed[@]}"; do
		echo "failed: $name; reproducer: $(grep -ohP 'Test unit written to \K.*|Failing input written to \K.*' "$OUT/$name.log" || echo "see $OUT/$name.log")"
	done
	[[ ${#failed[@]} -eq 0 ]]
}

main
