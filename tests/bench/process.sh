# shellcheck shell=bash disable=SC2154 # dir, threads and counts are those of run.sh
# bin/litestream as a process: how the other parts start and watch it, and the parts of
# run.sh that measure it as such.

free_port() {
	python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# write_config FILE FLEET STATE INTERVAL s3|DIRECTORY
write_config() {
	stats_port="$(free_port)"
	{
		echo "addr: \"127.0.0.1:$stats_port\""
		echo "multi_db:"
		echo "  discovery_pattern: \"$2/{group}/{tenant}.db\""
		echo "  sync_interval: $4"
		echo "  state_dir: \"$3\""
		if [[ $5 == s3 ]]; then
			printf '  %s\n' "s3:" "  bucket: fleet" "  path: \"{{group}}/{{tenant}}\"" \
				"  endpoint: $endpoint" "  access_key_id: benchkey" "  secret_access_key: benchsecret"
		else
			printf '  %s\n' "file:" "  directory: \"$5\"" "  path: \"{{group}}/{{tenant}}\""
		fi
	} >"$1"
}

start_process() { # CONFIG
	bin/litestream replicate -config "$1" >"$dir/litestream.log" 2>&1 &
	process=$!
}

stop_process() {
	[[ -n $process ]] || return 0
	kill "$process" 2>/dev/null || true
	wait "$process" 2>/dev/null || true
	process=''
}

# wait_cycle STATE_DIR: until another cycle has ended, by the file that it leaves there: to
# ask /stats again and again would count as CPU of the process.
wait_cycle() {
	local i before
	before="$(stat -c %i "$1/last-cycle.json")"
	for ((i = 0; i < 6000; i++)); do
		[[ $(stat -c %i "$1/last-cycle.json") == "$before" ]] || return 0
		kill -0 "$process" || break
		sleep 0.05
	done
	fail "no cycle ended: $(tail -5 "$dir/litestream.log")"
}

# wait_stats CONDITION: until /stats, then in $dir/stats, fulfills it.
wait_stats() {
	local i
	for ((i = 0; i < 6000; i++)); do
		if curl -sf "http://127.0.0.1:$stats_port/stats" >"$dir/stats" && jq -e "$1" "$dir/stats" >/dev/null; then
			return
		fi
		kill -0 "$process" || break
		sleep 0.1
	done
	fail "/stats never had $1: $(tail -5 "$dir/litestream.log")"
}

cpu_ticks() { awk '{ print $14 + $15 }' "/proc/$process/stat"; }
rss_of_kb() { awk '/^VmRSS/ { print $2 }' "/proc/$process/status"; }

# ------------------------------------------------------------------------- start

# After IDLE cycles at an interval of 1 s: RSS to $dir/kb.
idle_kb() { # CONFIG UPLOADS_WANTED
	start_process "$1"
	wait_stats '.cycles >= 6 and .unsynced == 0 and .changed_last_cycle == 0'
	rss_of_kb >"$dir/kb"
	stop_process
	[[ $(jq .uploads_success "$dir/stats") == "$2" ]] || fail "litestream uploaded $(jq .uploads_success "$dir/stats"), not $2"
}

# Seconds from exec until the end of the first cycle, and of a later one, to $dir/start.
start_once() { # CONFIG
	local begin first ticks
	begin="$(date +%s.%N)"
	start_process "$1"
	wait_stats '.cycles >= 1'
	ticks="$(cpu_ticks)"
	[[ $(jq .cycles "$dir/stats") == 1 ]] || fail "the first cycle was missed"
	first="$(jq -r .last_scan "$dir/stats" | date +%s.%N -f -)"
	cp "$dir/stats" "$dir/stats-first"
	wait_stats '.cycles >= 3'
	echo "$begin $first $(jq .cycle_seconds "$dir/stats-first") $(jq .cycle_seconds "$dir/stats") $ticks" |
		awk -v hz="$(getconf CLK_TCK)" '{ print $4, $2 - $1 + $3, $5 / hz }' >"$dir/start"
	stop_process
}

bench_start() {
	local i empty_kb first_kb
	need_fleet fleet template "$count" "$per_directory"
	mkdir -p "$dir/empty"
	write_config "$dir/empty.yml" "$dir/empty" "$dir/start-state-0" 1s "$dir/start-target-0"
	idle_kb "$dir/empty.yml" 0
	empty_kb="$(<"$dir/kb")"
	write_config "$dir/start.yml" "$dir/fleet" "$dir/start-state" 1s "$dir/start-target"
	idle_kb "$dir/start.yml" "$count"
	first_kb="$(<"$dir/kb")"
	idle_kb "$dir/start.yml" 0
	memory_row "RSS of bin/litestream, restarted" "$(<"$dir/kb")" "$empty_kb" 6
	memory_row "RSS of bin/litestream, after its first sync" "$first_kb" "$empty_kb" 6
	write_config "$dir/start.yml" "$dir/fleet" "$dir/start-state" 2s "$dir/start-target"
	for ((i = 0; i < runs; i++)); do
		start_once "$dir/start.yml"
		say "start $((i + 1))/$runs (idle cycle, start until first cycle is done, CPU of it): $(<"$dir/start")"
		cat "$dir/start"
	done >"$dir/starts"
	awk '{ print $1 * 1e3, $2 * 1e3 }' "$dir/starts" |
		ratio_row "start until the first cycle is done, against an idle cycle, wall ms" '%.0f' "<= 2"
	note "CPU of a start until the first cycle is done: $(awk '{ print $3 * 1e3 }' "$dir/starts" | spread '%.0f') ms"
}

# ----------------------------------------------------------- beside directory mode

# watch_process PROCESS DATABASES SECONDS: what an idle process uses. The gateway's log has its
# calls.
watch_process() {
	local ticks calls
	ticks="$(cpu_ticks)" calls="$(wc -l <"$dir/access.log")"
	sleep "$3"
	process_row "$1" "$2" "$(awk -v kb="$(rss_of_kb)" 'BEGIN { printf "%.0f MB", kb * 1024 / 1e6 }')" \
		"$(awk -v t=$(($(cpu_ticks) - ticks)) -v s="$3" -v hz="$(getconf CLK_TCK)" 'BEGIN { printf "%.2f %%", t / hz / s * 100 }')" \
		"$(find "/proc/$process/fd" -mindepth 1 | wc -l)" \
		"$((($(wc -l <"$dir/access.log") - calls) * 86400 / $3))"
}

# Litestream's directory mode; with too many databases it fails or never becomes idle.
rival_row() { # COUNT
	local i stored=0 before=-1
	need_fleet "fleet-rival-$1" template "$1" "$per_directory"
	cat >"$dir/rival.yml" <<-YML
		dbs:
		  - dir: "$dir/fleet-rival-$1"
		    pattern: "*.db"
		    recursive: true
		    replica:
		      type: s3
		      bucket: fleet
		      path: "rival-$1"
		      endpoint: "$endpoint"
		      force-path-style: true
	YML
	bin/litestream replicate -config "$dir/rival.yml" >"$dir/litestream.log" 2>&1 &
	process=$!
	for ((i = 0; i < 60 && (stored < $1 || stored != before); i++)); do # idle once nothing is added
		sleep 5
		kill -0 "$process" 2>/dev/null || break
		before=$stored
		stored="$(find "$memory/process/fleet/rival-$1" -type f 2>/dev/null | wc -l)"
	done
	if kill -0 "$process" 2>/dev/null && ((stored >= $1)); then
		watch_process "Litestream, directory mode" "$1" "$rival_seconds"
	else
		process_row "Litestream, directory mode" "$1" "did not get through: $stored objects in 5 min" - - -
	fi
	stop_process
}

bench_process() {
	local n
	need_fleet fleet template "$count" "$per_directory"
	start_gateway "$memory/process" 0 --access-log "$dir/access.log"
	for n in $rival_counts; do
		rival_row "$n"
	done
	write_config "$dir/process.yml" "$dir/fleet" "$dir/process-state" 30s s3
	start_process "$dir/process.yml"
	wait_stats '.cycles >= 2 and .unsynced == 0'
	stop_process
	start_process "$dir/process.yml" # as it is after a restart
	wait_stats '.cycles >= 2 and .unsynced == 0'
	watch_process "multi_db, 30 s interval" "$count" "$ours_seconds"
	stop_process
	stop_gateway
	rm -rf "$memory/process"
}

# --------------------------------------------------------------------------- cgo

bench_cgo() {
	need_fleet fleet-cgo template 1000 "$per_directory"
	GOFLAGS=-buildvcs=false GOWORK="$PWD/build/go.work" go build -o "$dir/crossings" ./tests/bench/crossings
	"$dir/crossings" "$dir/fleet-cgo" "$dir/cgo-state" "$dir/cgo-target" 640 >"$dir/crossings.log"
	row "calls from Go to C, idle cycle" "$(awk '/^idle/ { print $2 }' "$dir/crossings.log")" - - "<= 20" \
		"$(verdict "$(awk '/^idle/ { print $2 }' "$dir/crossings.log")" "<= 20")"
	row "calls from Go to C, cycle with 640 new failures" "$(awk '/^failing/ { print $2 }' "$dir/crossings.log")" - - "<= 30" \
		"$(verdict "$(awk '/^failing/ { print $2 }' "$dir/crossings.log")" "<= 30")"
}
