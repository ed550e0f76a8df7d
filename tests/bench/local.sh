# shellcheck shell=bash disable=SC2154 # dir, threads and counts are those of run.sh
# The parts of run.sh that need no server.

# ------------------------------------------------------------ idle and memory

# first_sync FLEET: the first cycle, to a directory; leaves $dir/FLEET-{target,state}.
first_sync() {
	[[ ! -d $dir/$1-state ]] || return 0
	timeout 3600 "$dir/cycles" "$dir/$1" "$dir/$1-target" "$dir/$1-state" 1 >"$dir/$1-first"
	say "first sync of $1, not measured: $(<"$dir/$1-first")"
}

# idle_rows FLEET WHAT TARGET COUNT: pairs of idle cycles and walks; the memory goes to $dir/FLEET-kb.
idle_rows() {
	local out
	first_sync "$1"
	out="$(timeout 3600 "$dir/idle" "$dir/$1" "$dir/$1-target" "$dir/$1-state" "$runs" "$threads")"
	[[ $(awk '/^rss/ { print $3 }' <<<"$out") == "$4" ]] || fail "not all of $1 was seen"
	pair_rows "idle cycle, $2" 1e3 ms '%.0f' "<= $3" <<<"$out"
	awk '/^rss/ { print $2 }' <<<"$out" >"$dir/$1-kb"
}

need_empty_kb() {
	[[ ! -s $dir/empty-kb ]] || return 0
	mkdir -p "$dir/empty"
	timeout 60 "$dir/idle" "$dir/empty" "$dir/empty-target" "$dir/empty-state" 0 "$threads" |
		awk '/^rss/ { print $2 }' >"$dir/empty-kb"
}

# calls_of FLEET CYCLES: how often each system call is made, as lines "NAME CALLS".
calls_of() {
	strace -f -c -U name,calls -o "$dir/calls" "$dir/cycles" "$dir/$1" "$dir/$1-target" "$dir/$1-state" "$2" >/dev/null
	awk '$2 ~ /^[0-9]+$/ && $1 != "total" { print $1, $2 }' "$dir/calls"
}

# calls_row FLEET WHAT STATS COUNT: what two further idle cycles add, for a database. STATS:
# one, the part that has a -wal, and one for each directory.
calls_row() {
	local per_database stats
	calls_of "$1" 1 >"$dir/calls-1"
	calls_of "$1" 3 >"$dir/calls-3"
	per_database="$(awk -v n="$4" 'NR == FNR { one[$1] = $2; next } { d = ($2 - one[$1]) / 2 / n; if (d >= 0.0005) printf "%s %.3f\n", $1, d }' \
		"$dir/calls-1" "$dir/calls-3" | sort -k2gr)"
	stats="$(awk '$1 == "statx" { print $2 }' <<<"$per_database")"
	row "system calls per database, $2" "$(awk '{ n += $2 } END { printf "%.3f", n }' <<<"$per_database")" \
		"$3 statx" "statx $stats" "<= $3 statx" "$(verdict "$stats" "<= $3")"
	note "system calls per database of an idle cycle, $2: $(paste -sd, <<<"$per_database" | sed 's/,/, /g')"
}

bench_idle() {
	build idle idle.c ours.c floor_walk.c
	need_fleet fleet template "$count" "$per_directory"
	need_fleet fleet-wal small "$count" "$per_directory" 30
	need_fleet fleet-flat small "$count" "$count"
	need_fleet fleet-wide small "$((count < 100000 ? count : 100000))" 1
	idle_rows fleet "$per_directory to a directory" 1.15 "$count"
	idle_rows fleet-wal "30 % with a -wal" 1.15 "$count"
	idle_rows fleet-flat "all in one directory" 1.2 "$count"
	idle_rows fleet-wide "a directory each" 1.2 "$((count < 100000 ? count : 100000))"
	need_empty_kb
	memory_row "RSS of the library, restarted" "$(<"$dir/fleet-kb")" "$(<"$dir/empty-kb")" 6
	memory_row "RSS of the library, after its first sync" "$(awk '{ print $5 }' "$dir/fleet-first")" "$(<"$dir/empty-kb")" 6
	calls_row fleet "none with a -wal" 1.02 "$count"
	calls_row fleet-wal "30 % with a -wal" 1.32 "$count"
}

bench_million() {
	build idle idle.c ours.c floor_walk.c
	need_fleet fleet-million small "$million" "$per_directory"
	idle_rows fleet-million "$million databases of 1 KB" 1.15 "$million"
	need_empty_kb
	memory_row "RSS of the library, $million databases" "$(<"$dir/fleet-million-kb")" "$(<"$dir/empty-kb")" 64
}

# ------------------------------------------------------------------ first sync

# Nothing is removed between the runs: ext4 does not use the inode of a deleted file
# again for minutes, and searches past them all for every new one.
sync_ours() { # NUMBER
	sync -f "$dir"
	timeout 900 "$dir/cycles" "$dir/fleet" "$dir/sync-target-$1" "$dir/sync-state-$1" 1 >"$dir/ours"
}

sync_floor() { # NUMBER
	sync -f "$dir"
	timeout 900 "$dir/floor_sync" "$dir/fleet" "$dir/sync-floor-$1" "$threads" >"$dir/floor"
}

bench_sync() {
	local i side
	build floor_sync floor_sync.c floor_frame.c
	need_fleet fleet template "$count" "$per_directory"
	for ((i = 0; i < long_runs; i++)); do
		for side in $( ((i % 2)) && echo ours floor || echo floor ours); do
			"sync_$side" $i
		done
		say "first sync $((i + 1))/$long_runs: floor $(<"$dir/floor"), ours $(<"$dir/ours")"
		[[ $(awk '{ print $4 }' "$dir/floor") == "$count" && $(awk '{ print $4 }' "$dir/ours") == "$count" ]] ||
			fail "not all of the fleet arrived"
		echo "pair $(cut -d' ' -f2,3 "$dir/floor") $(cut -d' ' -f2,3 "$dir/ours")"
	done >"$dir/pairs"
	pair_rows "first sync to a directory" 1 s '%.2f' "<= 1.15" <"$dir/pairs"
}

# ------------------------------------------------------------------- one database

bench_image() {
	build image image.c
	mkdir "$dir/images"
	"$dir/image" "$dir/images" 500 "$runs" >"$dir/pairs"
	pair_rows "image of a live WAL database, 20 KB, 10 frames" 1e6 us '%.0f' "<= 0.15" <"$dir/pairs"
}

make_big() {
	mkdir "$dir/big-database"
	sqlite3 "$dir/big-database/big.db" "PRAGMA page_size=4096" "PRAGMA synchronous=OFF" \
		"CREATE TABLE person (id INTEGER PRIMARY KEY, name TEXT, mail TEXT, note TEXT)" \
		"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < $((big_mb * 7850)))
		 INSERT INTO person SELECT i, 'Person ' || i || char(65 + i % 26),
			lower(hex(randomblob(6))) || '@example.com',
			'note ' || hex(randomblob(16)) || ' on what happened with order ' || (i * 7919) FROM n"
	sync -f "$dir"
}

bench_big() {
	local i side TIMEFORMAT='%R %U %S'
	build big big.c
	make_big
	for ((i = -1; i < long_runs; i++)); do # the first pair only warms up
		for side in $( ((i % 2)) && echo ours floor || echo floor ours); do
			sync -f "$dir"
			if [[ $side == ours ]]; then
				"$dir/big" "$dir/big-database" big.db "$dir" >"$dir/ours"
			else
				{ time lz4 -1 -q -f "$dir/big-database/big.db" "$dir/big.lz4"; } 2>"$dir/floor"
			fi
		done
		say "large database $((i + 1))/$long_runs: lz4 $(<"$dir/floor"), ours $(<"$dir/ours")"
		if ((i >= 0)); then
			echo "pair $(awk '{ print $1, $2 + $3 }' "$dir/floor") $(cut -d' ' -f2,3,5,6 "$dir/ours")"
		fi
	done >"$dir/pairs"
	pair_rows "$(($(stat -c %s "$dir/big-database/big.db") / 1000000)) MB database to the spool, against lz4 -1" 1 s '%.2f' "<= 1.2" <"$dir/pairs"
	memory_row "RSS, the large database" "$(awk '{ print $7 }' "$dir/pairs" | sort -g | tail -1)" "$(awk '{ print $6 }' "$dir/pairs" | sort -g | head -1)" 64
}
