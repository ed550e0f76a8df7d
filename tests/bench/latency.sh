# shellcheck shell=bash disable=SC2154 # dir is that of run.sh
# The part of run.sh that measures what the applications notice: 10 databases in WAL
# mode and 10 with a rollback journal, each with a process that commits 20 times a
# second with busy_timeout 0 (writers.c), BENCH_LATENCY_SECONDS at a time, in turns
#
#   none   without a replicator
#   s3     with bin/litestream at an interval of 1 s, a versitygw here as the target
#   file   the same, a directory on the same file system as the target
#
# None comes before each of the others, so there are two of it for one of them: the
# spread of its runs is what the machine does by itself. A figure of a side is the
# median over the rounds of the percentile of all commits of a run.
#
# The S3 server stands for one elsewhere: it has the lowest priority and keeps its
# objects in memory (/dev/shm, where there is one). It is there, idle, in all runs. The
# replicator runs as it would run anywhere.

latency_process=''

# latency_start SIDE: replicates $dir/latency to SIDE until it has nothing to do.
latency_start() {
	local i
	write_config "$dir/latency.yml" "$dir/latency" "$dir/latency-state-$1" 1s \
		"$([[ $1 == s3 ]] && echo s3 || echo "$dir/latency-target")"
	bin/litestream replicate -config "$dir/latency.yml" >"$dir/latency.log" 2>&1 &
	latency_process=$! latency_stats="http://127.0.0.1:$stats_port/stats"
	for ((i = 0; i < 300; i++)); do
		sleep 0.2
		if curl -sf "$latency_stats" | jq -e '.cycles >= 3 and .unsynced == 0' >/dev/null; then
			return
		fi
		kill -0 "$latency_process" || break
	done
	tail -5 "$dir/latency.log" >&2
	exit 1
}

latency_stop() {
	[[ -n $latency_process ]] || return 0
	kill -TERM "$latency_process" 2>/dev/null || true
	wait "$latency_process" || true
	latency_process=''
}

# Ticks of CPU of the replicator so far.
latency_cpu() { awk '{ print $14 + $15 }' "/proc/$latency_process/stat"; }

# latency_run SIDE: one run; its figures go to $dir/latency-SIDE.
latency_run() {
	local uploads=0 cpu=0 figures
	if [[ $1 != none ]]; then
		latency_start "$1"
		uploads="$(curl -sf "$latency_stats" | jq .uploads_success)"
		cpu="$(latency_cpu)"
	fi
	figures="$("$dir/writers" "$dir/latency" 10 20 "$latency_seconds")"
	if [[ $1 != none ]]; then
		uploads=$(($(curl -sf "$latency_stats" | jq .uploads_success) - uploads))
		cpu=$(($(latency_cpu) - cpu))
		latency_stop
		((uploads >= 20 * (latency_seconds / 3))) || fail "$1: only $uploads uploads beside the writers"
	fi
	say "latency, $1: $(awk '{ printf "%s p50 %.2f p99 %.2f most %.2f ms, %d commits, %d busy; ", $1, $2 / 1e3, $3 / 1e3, $4 / 1e3, $5, $6 }' <<<"$figures")$uploads uploads, $((cpu * 100 / latency_seconds / $(getconf CLK_TCK))) % of a core"
	awk -v u="$uploads" -v c="$cpu" '{ print $0, u, c }' <<<"$figures" >>"$dir/latency-$1"
}

# latency_row MODE COLUMN NAME SIDE TARGET
latency_row() {
	local ours floor verdict
	awk -v m="$1" -v c="$2" '$1 == m { print $c / 1e3 }' "$dir/latency-$4" >"$dir/ours"
	awk -v m="$1" -v c="$2" '$1 == m { print $c / 1e3 }' "$dir/latency-none" >"$dir/floor"
	ours="$(median <"$dir/ours")" floor="$(median <"$dir/floor")"
	verdict="$(awk -v a="$ours" -v b="$floor" -v t="$5" -v most="$(sort -g "$dir/floor" | tail -1)" 'BEGIN {
		print (a <= b * t ? "met" : t > 1.1 && a <= most ? "met (within the spread)" : "MISSED") }')"
	row "commit, $1, $3 ms, to $4" "$(spread '%.2f' <"$dir/ours")" "$(spread '%.2f' <"$dir/floor")" \
		"$(awk -v a="$ours" -v b="$floor" 'BEGIN { printf "%.3f", a / b }')" "<= $5" "$verdict"
}

bench_latency() {
	local round side mode busy
	build writers writers.c
	mkdir "$dir/latency"
	start_gateway "$memory/latency" 19
	"$dir/writers" "$dir/latency" 10 20 6 >/dev/null # makes them
	for ((round = 1; round <= latency_rounds; round++)); do
		say "latency, round $round/$latency_rounds"
		for side in $( ((round % 2)) && echo none s3 none file || echo none file none s3); do
			latency_run "$side"
		done
	done
	stop_gateway
	for side in s3 file; do
		for mode in wal rollback; do
			latency_row "$mode" 2 p50 "$side" 1.05
			latency_row "$mode" 3 p99 "$side" 1.25
		done
		busy="$(awk '{ n += $6; c += $5 } END { print n " of " c + n }' "$dir/latency-$side")"
		row "SQLITE_BUSY, to $side" "$busy" "$(awk '{ n += $6; c += $5 } END { print n " of " c + n }' "$dir/latency-none")" \
			- 0 "$([[ ${busy%% *} == 0 ]] && echo met || echo MISSED)"
	done
	note "latency: $latency_rounds rounds of $latency_seconds s; the S3 server at nice 19, its objects in memory; none has two runs a round"
}
