#!/bin/bash
# shellcheck disable=SC2317 # functions are called by name
#
# The speed targets, both sides of each in one run, in turns (make bench):
#
#   first sync   of the fleet to the file target, against read + LZ4 frame + SHA-256
#                + write with the same durability, on all cores (floor_sync.c)
#   idle cycle   over the fleet, against a bare getdents64 + statx walk (floor_walk.c)
#   memory       of an idle process with the fleet, against one without
#   restore      of a fleet from an S3 server here, against s5cmd cp + lz4 -d
#                (restore.sh)
#   latency      of commits of the applications, with and without a replicator
#                (latency.sh)
#
# Everything is warm in the page cache. A ratio is the median of the ratios of the
# pairs; the spread is least to most. CPU is user + system of the process.
#
#   BENCH_COUNT      databases (100000), 100 to a directory, 20 KB each
#   BENCH_RUNS       pairs of idle cycles (9)
#   BENCH_SYNC_RUNS  pairs of first syncs (3)
#   BENCH_RESTORE_COUNT, BENCH_RESTORE_RUNS
#                    databases (20000) and pairs (5) of the fleet restore
#   BENCH_LATENCY_ROUNDS, BENCH_LATENCY_SECONDS
#                    rounds of four runs (5), and how long a run takes (20)
#   BENCH_SKIP       parts to leave out: sync idle litestream restore latency
#   BENCH_FS=loop    work on a new ext4 of its own (as root): deletions by others on
#                    a shared one slow the creation of files for minutes
#
# Data goes to a new directory below TMPDIR (20 KB a database, 12 KB more for each first sync) and is removed.
set -euo pipefail
cd "$(dirname "$0")/../.."

count="${BENCH_COUNT:-100000}" runs="${BENCH_RUNS:-9}" sync_runs="${BENCH_SYNC_RUNS:-3}"
restore_count="${BENCH_RESTORE_COUNT:-20000}" restore_runs="${BENCH_RESTORE_RUNS:-5}"
latency_rounds="${BENCH_LATENCY_ROUNDS:-5}" latency_seconds="${BENCH_LATENCY_SECONDS:-20}"
skip=" ${BENCH_SKIP:-} "
per_directory=100
threads="$(nproc)"
tmp="$(mktemp -d "${TMPDIR:-/tmp}/us-bench.XXXXXX")"
dir="$tmp/data"
process=
mounted=
notes=()
# shellcheck source=tests/bench/restore.sh
. tests/bench/restore.sh
# shellcheck source=tests/bench/latency.sh
. tests/bench/latency.sh
cleanup() {
	if [[ -n $process ]]; then
		kill "$process" 2>/dev/null || true
		wait "$process" 2>/dev/null || true
	fi
	latency_stop
	stop_gateway
	[[ -z $latency_memory ]] || rm -rf "$latency_memory"
	[[ -z $mounted ]] || umount "$dir" || umount -l "$dir"
	rm -rf "$tmp"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

say() { printf '%s\n' "$*" >&2; }

# ---------------------------------------------------------------------- making

build() { # NAME SOURCE...
	local name=$1
	shift
	gcc -std=gnu17 -O2 -D_GNU_SOURCE -Wall -Wextra -Icsrc/include -o "$dir/$name" \
		"${@/#/tests/bench/}" build/libultrasimple.a \
		-lcurl -llz4 -lsqlite3 -lssl -lcrypto -lexpat -lm -pthread
}

# A new ext4 in a file, for BENCH_FS=loop.
make_filesystem() {
	truncate -s "$(((count * (24 + 14 * (2 * sync_runs + 1)) +
		restore_count * (38 + 62 * (restore_runs + 1))) / 1024 + 512))M" "$tmp/image"
	mkfs.ext4 -q -N "$((count * (2 + 2 * (2 * sync_runs + 1)) + restore_count * (3 + 4 * (restore_runs + 1)) + 65536))" -E lazy_itable_init=0 "$tmp/image"
	mount -o loop "$tmp/image" "$dir"
	mounted=1
}

make_fleet() {
	sqlite3 "$dir/template.db" "PRAGMA page_size=4096" \
		"CREATE TABLE person (id INTEGER PRIMARY KEY, name TEXT, mail TEXT, note TEXT)" \
		"CREATE INDEX person_mail ON person (mail)" \
		"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 120)
		 INSERT INTO person SELECT i, 'Person ' || i || char(65 + i % 26),
			lower(hex(randomblob(6))) || '@example.com',
			'note ' || hex(randomblob(16)) || ' on what happened with order ' || i * 7919 FROM n" \
		"UPDATE person SET name = 'MARKER0123456789' WHERE id = 1"
	[[ $(stat -c %s "$dir/template.db") -eq 20480 ]] || { say "the template is not 20 KB"; exit 1; }
	mkdir "$dir/fleet" "$dir/empty"
	"$dir/fleet-maker" "$dir/template.db" "$dir/fleet" "$count" "$per_directory"
	sync -f "$dir"
}

# -------------------------------------------------------------------- figures

# Median, least and most of the numbers on standard input, by FORMAT.
spread() { # FORMAT
	sort -g | awk -v f="$1" '
		{ v[NR] = $1 }
		END { m = NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2
		      printf f " (" f "-" f ")", m, v[1], v[NR] }'
}

median() { spread '%.6f' | awk '{ print $1 }'; }

rows=()
row() { rows+=("$(printf '%-40s %-24s %-24s %-20s %-8s %s' "$@")"); }

# ratio_row WHAT FORMAT TARGET < lines "floor ours"; TARGET "-": none
ratio_row() {
	local pairs ratios verdict=-
	pairs="$(cat)"
	ratios="$(awk '{ print ($1 > 0 ? $2 / $1 : 0) }' <<<"$pairs")"
	if [[ $3 != - ]]; then
		verdict="$(median <<<"$ratios" | awk -v t="$3" '{ print ($1 <= t ? "met" : "MISSED") }')"
	fi
	row "$1" "$(awk '{ print $2 }' <<<"$pairs" | spread "$2")" "$(awk '{ print $1 }' <<<"$pairs" | spread "$2")" \
		"$(spread '%.2f' <<<"$ratios")" "$([[ $3 == - ]] && echo - || echo "<= $3")" "$verdict"
}

# memory_row WHAT FULL_KB EMPTY_KB TARGET_MB
memory_row() {
	local verdict
	verdict="$(awk -v a="$2" -v b="$3" -v t="$4" 'BEGIN { print ((a - b) * 1024 <= t * 1e6 ? "met" : "MISSED") }')"
	row "$1" "$(awk -v a="$2" 'BEGIN { printf "%.1f MB", a * 1024 / 1e6 }')" \
		"$(awk -v a="$3" 'BEGIN { printf "%.1f MB (empty)", a * 1024 / 1e6 }')" \
		"$(awk -v a="$2" -v b="$3" 'BEGIN { printf "%+.1f MB", (a - b) * 1024 / 1e6 }')" "<= $4 MB" "$verdict"
}

# ------------------------------------------------------------------ first sync

# Nothing is removed between the runs: ext4 does not use the inode of a deleted file
# again for minutes, and searches past them all for every new one.
sync_ours() { # NUMBER
	target="$dir/target-$1" state="$dir/state-$1"
	sync -f "$dir"
	timeout 900 "$dir/sync" "$dir/fleet" "$target" "$state" >"$dir/ours"
}

sync_floor() { # NUMBER
	sync -f "$dir"
	timeout 900 "$dir/floor_sync" "$dir/fleet" "$dir/floor-$1" "$threads" >"$dir/floor"
}

# Leaves target and state of the last run of ours for what follows.
bench_sync() {
	local i floor ours pairs=()
	for ((i = 0; i < sync_runs; i++)); do
		if ((i % 2 == 0)); then
			sync_floor $i
			sync_ours $i
		else
			sync_ours $i
			sync_floor $i
		fi
		floor="$(<"$dir/floor")" ours="$(<"$dir/ours")"
		say "first sync $((i + 1))/$sync_runs: floor ${floor#sync }, ours ${ours#sync }"
		[[ $(awk '{ print $4 }' <<<"$floor") == "$count" && $(awk '{ print $4 }' <<<"$ours") == "$count" ]] ||
			{ say "not all of the fleet arrived"; exit 1; }
		pairs+=("$floor $ours")
	done
	# Fields: sync wall cpu objects sync wall cpu objects rss
	printf '%s\n' "${pairs[@]}" | awk '{ print $2, $6 }' >"$dir/wall"
	printf '%s\n' "${pairs[@]}" | awk '{ print $3, $7 }' >"$dir/cpu"
	ratio_row "first sync, wall s" '%.2f' 1.5 <"$dir/wall"
	ratio_row "first sync, CPU s" '%.2f' - <"$dir/cpu"
	sync_rss="$(awk '{ print $5 }' <<<"$ours")"
}

# ------------------------------------------------------------ idle and memory

bench_idle() {
	local full empty full_kb empty_kb
	full="$(timeout 900 "$dir/idle" "$dir/fleet" "$target" "$state" "$runs" "$threads")"
	empty="$(timeout 60 "$dir/idle" "$dir/empty" "$dir/target-empty" "$dir/state-empty" 0 "$threads")"
	[[ $(awk '/^rss/ { print $3 }' <<<"$full") == "$count" ]] || { say "not all of the fleet was seen"; exit 1; }
	awk '/^pair/ { print $2 * 1e3, $4 * 1e3 }' <<<"$full" >"$dir/wall"
	awk '/^pair/ { print $3 * 1e3, $5 * 1e3 }' <<<"$full" >"$dir/cpu"
	awk '/^pair/ { print $2 * 1e3, $6 * 1e3 }' <<<"$full" >"$dir/scan"
	ratio_row "idle cycle, wall ms" '%.0f' 1.5 <"$dir/wall"
	ratio_row "idle cycle, CPU ms" '%.0f' - <"$dir/cpu"
	ratio_row "idle cycle, scan_seconds as ms" '%.0f' - <"$dir/scan"
	full_kb="$(awk '/^rss/ { print $2 }' <<<"$full")"
	empty_kb="$(awk '/^rss/ { print $2 }' <<<"$empty")"
	memory_row "RSS of the library, restarted" "$full_kb" "$empty_kb" 8
	if [[ -n ${sync_rss:-} ]]; then
		memory_row "RSS of the library, after its first sync" "$sync_rss" "$empty_kb" 8
	fi
}

free_port() {
	python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# replicate_kb ROOT TARGET STATE UPLOADS_WANTED: RSS of bin/litestream after idle cycles.
replicate_kb() {
	local port kb i stats
	port="$(free_port)"
	cat >"$dir/litestream.yml" <<-YML
		addr: "127.0.0.1:$port"
		multi_db:
		  discovery_pattern: "$1/{group}/{tenant}.db"
		  sync_interval: 1s
		  state_dir: "$3"
		  file:
		    directory: "$2"
		    path: "{{group}}/{{tenant}}"
	YML
	bin/litestream replicate -config "$dir/litestream.yml" >"$dir/litestream.log" 2>&1 &
	process=$!
	for ((i = 0; i < 600; i++)); do
		sleep 0.5
		stats="$(curl -sf "http://127.0.0.1:$port/stats" || true)"
		if jq -e '.cycles >= 6 and .unsynced == 0 and .changed_last_cycle == 0' <<<"${stats:-null}" >/dev/null; then
			break
		fi
		kill -0 "$process" || { cat "$dir/litestream.log" >&2; exit 1; }
	done
	kb="$(awk '/^VmRSS/ { print $2 }' "/proc/$process/status")"
	kill -TERM "$process"
	wait "$process" || true
	process=
	jq -e --argjson n "$4" '.uploads_success == $n' <<<"$stats" >/dev/null ||
		{ say "litestream uploaded $(jq .uploads_success <<<"$stats"), not $4"; exit 1; }
	echo "$kb" >"$dir/kb"
}

bench_litestream() {
	local empty_kb restarted_kb first_kb
	replicate_kb "$dir/empty" "$dir/target-l0" "$dir/state-l0" 0
	empty_kb="$(<"$dir/kb")"
	replicate_kb "$dir/fleet" "$dir/target-l" "$dir/state-l" "$count"
	first_kb="$(<"$dir/kb")"
	replicate_kb "$dir/fleet" "$dir/target-l" "$dir/state-l" 0
	restarted_kb="$(<"$dir/kb")"
	memory_row "RSS of bin/litestream, restarted" "$restarted_kb" "$empty_kb" 8
	memory_row "RSS of bin/litestream, after first sync" "$first_kb" "$empty_kb" 8
}

# ----------------------------------------------------------------------- report

mkdir "$dir"
[[ ${BENCH_FS:-} != loop ]] || make_filesystem
build fleet-maker fleet.c
build idle idle.c ours.c floor_walk.c
build sync sync.c ours.c
build floor_sync floor_sync.c

say "making $count databases in $dir"
make_fleet
if [[ $skip != *" sync "* ]]; then
	bench_sync
elif [[ $skip != *" idle "* ]]; then
	sync_ours 0
	say "first sync, not measured: $(<"$dir/ours")"
fi
[[ $skip == *" idle "* ]] || bench_idle
[[ $skip == *" litestream "* ]] || bench_litestream
[[ $skip == *" restore "* ]] || bench_restore
[[ $skip == *" latency "* ]] || bench_latency

echo
echo "$count databases of 20 KB in $(((count + per_directory - 1) / per_directory)) directories;" \
	"$threads cores, Linux $(uname -r), $(findmnt -no FSTYPE -T "$dir")${mounted:+ (loop)}, $(date -u +%Y-%m-%d)," \
	"load $(cut -d' ' -f1 /proc/loadavg), $(git describe --always --dirty 2>/dev/null || echo no git)"
echo "median (least-most)"
echo
printf '%-40s %-24s %-24s %-20s %-8s %s\n' what ours floor "ours/floor" target verdict
printf '%s\n' "${rows[@]}"
[[ ${#notes[@]} -eq 0 ]] || printf '%s\n' "" "${notes[@]}"
