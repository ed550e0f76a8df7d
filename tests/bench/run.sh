#!/bin/bash
# shellcheck disable=SC2317 # functions are called by name
#
# The speed targets, both sides of each in one run, in turns (make bench). Prints a table
# and, if nothing was left out, writes it to docs/benchmarks.md.
#
#   idle     cycles that find nothing changed, over fleets of several shapes, against a
#            bare getdents64 + statx walk (floor_walk.c); memory; system calls
#   million  the same with 1,000,000 databases of 1 KB
#   sync     first sync to the file target, against read + LZ4 frame + SHA-256 + write
#            with the same durability, on all cores (floor_sync.c)
#   image    of a live WAL database, against libsqlite3 (image.c)
#   big      a database of 1 GB to an object in the spool, against lz4 -1 (big.c)
#   cgo      calls from Go to C in a cycle (crossings/main.go)
#   start    of bin/litestream until its first cycle is done, against an idle cycle; memory
#   put      8 KiB objects to S3, against s5cmd and a bare libcurl loop (put.c)
#   upload   first sync to S3, against the same work in one bare program (floor_upload.c)
#   process  bin/litestream with an idle fleet, beside Litestream's directory mode
#   steady   cycles that find 1 % changed, to S3, against floor_upload.c; allocations
#   ack      from commit until S3 has it (ack.c)
#   restore  of a fleet from S3, against s5cmd cp + lz4 -d (restore.sh)
#   latency  of commits of the applications, with and without a replicator (latency.sh)
#
# Everything is warm in the page cache. A ratio is the median of the ratios of the
# pairs; the spread is least to most. CPU is user + system of the process.
#
#   BENCH_ONLY       parts to run, by name (all)
#   BENCH_COUNT      databases of 20 KB, and of each shape of idle, 100 to a directory (100000)
#   BENCH_MILLION    databases of the part million (1000000)
#   BENCH_RUNS       pairs of short measurements, as idle cycles (9)
#   BENCH_LONG_RUNS  pairs of long ones, as first syncs (5)
#   BENCH_PUTS       objects of the part put (10000)
#   BENCH_UPLOADS    databases of the part upload (20000)
#   BENCH_BIG_MB     size of the large database (1000)
#   BENCH_ACK_COUNT, BENCH_ACK_SECONDS
#                    databases of the part ack, of which 2 % change (10000), and how long (60)
#   BENCH_RIVAL_COUNTS, BENCH_RIVAL_SECONDS
#                    databases of Litestream's directory mode ("500 1000 2500"), and how long
#                    each process is watched (120; that of multi_db five times as long)
#   BENCH_RESTORE_COUNT
#                    databases of the fleet restore (20000)
#   BENCH_LATENCY_ROUNDS, BENCH_LATENCY_SECONDS
#                    rounds of four runs (5), and how long a run takes (20)
#   BENCH_FS=loop    work on a new ext4 of its own (as root): deletions by others on
#                    a shared one slow the creation of files for minutes
#
# Data goes to a new directory below TMPDIR (about 40 GB for everything) and is removed; S3
# servers keep theirs in memory (/dev/shm), but for restore.
set -euo pipefail
cd "$(dirname "$0")/../.."

count="${BENCH_COUNT:-100000}" million="${BENCH_MILLION:-1000000}"
runs="${BENCH_RUNS:-9}" long_runs="${BENCH_LONG_RUNS:-5}"
puts="${BENCH_PUTS:-10000}" uploads="${BENCH_UPLOADS:-20000}" big_mb="${BENCH_BIG_MB:-1000}"
ack_count="${BENCH_ACK_COUNT:-10000}" ack_seconds="${BENCH_ACK_SECONDS:-60}"
rival_counts="${BENCH_RIVAL_COUNTS:-500 1000 2500}" rival_seconds="${BENCH_RIVAL_SECONDS:-120}"
ours_seconds=$((5 * rival_seconds)) # its only calls are ten minutes apart
restore_count="${BENCH_RESTORE_COUNT:-20000}" restore_runs="$long_runs"
latency_rounds="${BENCH_LATENCY_ROUNDS:-5}" latency_seconds="${BENCH_LATENCY_SECONDS:-20}"
parts="idle million sync image big cgo start put upload process steady ack restore latency"
per_directory=100
threads="$(nproc)"
tmp="$(mktemp -d "${TMPDIR:-/tmp}/us-bench.XXXXXX")"
dir="$tmp/data"
memory=
process=
mounted=

say() { printf '%s\n' "$*" >&2; }
fail() {
	say "$@"
	exit 1
}

for part in ${BENCH_ONLY:-}; do
	[[ " $parts " == *" $part "* ]] || fail "BENCH_ONLY: no such part: $part; known are: $parts"
done

# shellcheck source=tests/bench/local.sh
. tests/bench/local.sh
# shellcheck source=tests/bench/process.sh
. tests/bench/process.sh
# shellcheck source=tests/bench/s3.sh
. tests/bench/s3.sh
# shellcheck source=tests/bench/restore.sh
. tests/bench/restore.sh
# shellcheck source=tests/bench/latency.sh
. tests/bench/latency.sh

cleanup() {
	stop_process
	stop_changer
	latency_stop
	stop_gateway
	[[ -z $memory ]] || rm -rf "$memory"
	[[ -z $mounted ]] || umount "$dir" || umount -l "$dir"
	rm -rf "$tmp"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# ---------------------------------------------------------------------- making

build() { # NAME SOURCE...
	local name=$1
	shift
	gcc -std=gnu17 -O2 -D_GNU_SOURCE -Wall -Wextra -Icsrc -Icsrc/include -o "$dir/$name" \
		"${@/#/tests/bench/}" build/libultrasimple.a \
		-lcurl -llz4 -lsqlite3 -lssl -lcrypto -lexpat -lm -pthread
}

# A new ext4 in a file, for BENCH_FS=loop.
make_filesystem() {
	truncate -s "$(($(df --output=avail -B1 "$tmp" | tail -1) * 9 / 10))" "$tmp/image"
	mkfs.ext4 -q -N $((count * 60 + million * 4 + restore_count * 40 + uploads * 4 + 65536)) \
		-E lazy_itable_init=0 "$tmp/image"
	mount -o loop "$tmp/image" "$dir"
	mounted=1
}

# 20 KB, as an application has them.
make_template() {
	sqlite3 "$dir/template.db" "PRAGMA page_size=4096" \
		"CREATE TABLE person (id INTEGER PRIMARY KEY, name TEXT, mail TEXT, note TEXT)" \
		"CREATE INDEX person_mail ON person (mail)" \
		"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 70)
		 INSERT INTO person SELECT i, 'Person ' || i || char(65 + i % 26),
			lower(hex(randomblob(6))) || '@example.com',
			'note ' || hex(randomblob(16)) || ' on what happened with order ' || (i * 7919) FROM n" \
		"UPDATE person SET name = 'MARKER0123456789' WHERE id = 1"
	[[ $(stat -c %s "$dir/template.db") -eq 20480 ]] || fail "the template is not 20 KB"
}

# The smallest there is: 1 KB. small.db-wal is of an application that is still running.
make_small_template() {
	sqlite3 "$dir/live.db" "PRAGMA page_size=512" "PRAGMA journal_mode=WAL" \
		"CREATE TABLE item (text)" "INSERT INTO item VALUES ('MARKER0123456789')" \
		"PRAGMA wal_checkpoint(TRUNCATE)" "INSERT INTO item VALUES ('other')" \
		".system cp '$dir/live.db' '$dir/small.db' && cp '$dir/live.db-wal' '$dir/small.db-wal'" >/dev/null
	[[ $(stat -c %s "$dir/small.db") -eq 1024 && -s $dir/small.db-wal ]] || fail "the small template is not 1 KB"
}

# need_fleet NAME TEMPLATE COUNT PER_DIRECTORY [WAL_PERCENT]: makes $dir/NAME once.
need_fleet() {
	local name=$1 template=$2
	shift 2
	[[ ! -d $dir/$name ]] || return 0
	say "making $1 databases in $dir/$name"
	mkdir "$dir/$name"
	"$dir/fleet-maker" "$dir/$template.db" "$dir/$name" "$@"
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

median() { spread '%.9f' | awk '{ print $1 }'; }

# verdict VALUE "<= TARGET"|">= TARGET"|-
verdict() {
	awk -v v="$1" -v t="$2" 'BEGIN { split(t, p, " ")
		print (p[1] == "-" ? "-" : p[1] == "<=" ? (v <= p[2] ? "met" : "MISSED") : (v >= p[2] ? "met" : "MISSED")) }'
}

# What the report is made of is in files, as much of it comes from subshells.
row() { printf '%s\t%s\t%s\t%s\t%s\t%s\n' "$@" >>"$tmp/rows"; } # WHAT OURS AGAINST RATIO TARGET VERDICT
process_row() { printf '%s\t%s\t%s\t%s\t%s\t%s\n' "$@" | tee -a "$tmp/processes" >&2; } # PROCESS DATABASES RSS CPU DESCRIPTORS CALLS
note() { printf '%s\n' "$*" >>"$tmp/notes"; }

# ratio_row WHAT FORMAT TARGET < lines "against ours"
ratio_row() {
	local pairs ratios
	pairs="$(cat)"
	ratios="$(awk '{ print ($1 > 0 ? $2 / $1 : 0) }' <<<"$pairs")"
	row "$1" "$(awk '{ print $2 }' <<<"$pairs" | spread "$2")" "$(awk '{ print $1 }' <<<"$pairs" | spread "$2")" \
		"$(spread '%.2f' <<<"$ratios")" "$3" "$(verdict "$(median <<<"$ratios")" "$3")"
}

# pair_rows WHAT FACTOR UNIT FORMAT TARGET < lines "pair WALL CPU WALL CPU", the floor's first
pair_rows() {
	local pairs
	pairs="$(cat)"
	awk -v f="$2" '/^pair/ { print $2 * f, $4 * f }' <<<"$pairs" | ratio_row "$1, wall $3" "$4" "$5"
	awk -v f="$2" '/^pair/ { print $3 * f, $5 * f }' <<<"$pairs" | ratio_row "$1, CPU $3" "$4" "$5"
}

# memory_row WHAT FULL_KB EMPTY_KB TARGET_MB
memory_row() {
	local growth
	growth="$(awk -v a="$2" -v b="$3" 'BEGIN { printf "%+.1f", (a - b) * 1024 / 1e6 }')"
	row "$1" "$(awk -v a="$2" 'BEGIN { printf "%.1f MB", a * 1024 / 1e6 }')" \
		"$(awk -v a="$3" 'BEGIN { printf "%.1f MB (empty)", a * 1024 / 1e6 }')" \
		"$growth MB" "<= $4 MB" "$(verdict "$growth" "<= $4")"
}

# ----------------------------------------------------------------------- report

machine() {
	echo "$threads cores ($(awk -F': *' '/^model name/ { print $2; exit }' /proc/cpuinfo)), $(awk '/^MemTotal/ { printf "%.0f GB", $2 / 1e6 }' /proc/meminfo) of memory, Linux $(uname -r), $file_system, $(date -u +%Y-%m-%d)"
	echo "libcurl $(curl-config --version | cut -d' ' -f2), lz4 $(lz4 --version | grep -oE 'v[0-9.]+' | head -1), SQLite $(sqlite3 --version | cut -d' ' -f1), gcc $(gcc -dumpfullversion), $(go version | cut -d' ' -f3), $(bin/litestream version)"
}

print_table() {
	column -t -s $'\t' "$tmp/rows"
	[[ $(wc -l <"$tmp/processes") -eq 1 ]] || { echo; column -t -s $'\t' "$tmp/processes"; }
	[[ ! -s $tmp/notes ]] || { echo; cat "$tmp/notes"; }
}

markdown_table() { # lines of fields between tabs, the first of them the header
	awk -F'\t' '{ printf "|"; for (i = 1; i <= NF; i++) printf " %s |", $i; print ""
		if (NR == 1) { printf "|"; for (i = 1; i <= NF; i++) printf "---|"; print "" } }'
}

write_document() {
	echo "# Benchmarks"
	echo
	echo "Written by \`make bench\` (tests/bench/run.sh says what each part does). Both sides of a row were measured in the same"
	echo "run, in turns, warm. Figures are the median (least-most); a ratio is the median of the ratios of the pairs. CPU is"
	echo "user + system of the process."
	echo
	machine | sed -e 's/^/- /' -e 's/$/./'
	echo "- $count databases of 20 KB unless a row says otherwise."
	echo
	markdown_table <"$tmp/rows"
	echo
	echo "A process with an idle fleet in S3, beside Litestream v0.5.18 in directory mode:"
	echo
	markdown_table <"$tmp/processes"
	echo
	sed 's/^/- /' "$tmp/notes"
}

# ------------------------------------------------------------------------- main

mkdir "$dir"
[[ ${BENCH_FS:-} != loop ]] || make_filesystem
memory="$(mktemp -d "$([[ -w /dev/shm ]] && echo /dev/shm || echo "$dir")/us-bench.XXXXXX")"
file_system="$(findmnt -no FSTYPE -T "$dir")${mounted:+ (loop)}"
row what ours against ratio target verdict
process_row process databases RSS CPU descriptors "calls a day" 2>/dev/null
build fleet-maker fleet.c
build cycles cycles.c ours.c
make_template
make_small_template
for part in ${BENCH_ONLY:-$parts}; do
	say "== $part"
	"bench_$part"
done

echo
machine
echo "$count databases of 20 KB unless a row says otherwise; load $(cut -d' ' -f1 /proc/loadavg); median (least-most)"
echo
print_table
if [[ -z ${BENCH_ONLY:-} ]]; then
	write_document >docs/benchmarks.md
	say "docs/benchmarks.md is written"
fi
