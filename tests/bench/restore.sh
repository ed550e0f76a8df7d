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
# s5cmd is that of s3.sh. Without it, rclone is used, and without that, curl with a list of
# all objects given to it.

fetch_plain() { # DIRECTORY
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
	plain="$(get_s5cmd)"
	if [[ -z $plain ]]; then
		plain=curl
		! command -v rclone >/dev/null || plain=rclone
	fi
	version="$plain"
	[[ $plain != *s5cmd ]] || version="s5cmd $("$plain" version)"
	need_fleet restore-fleet template "$n" "$per_directory"
	start_gateway "$dir/gateway" 0
	write_config "$dir/restore.yml" "$dir/restore-fleet" "$dir/restore-state" 30s s3
	say "uploading $n databases to versitygw"
	bin/litestream replicate -once -config "$dir/restore.yml" >"$dir/replicate.log" 2>&1 || fail "$(<"$dir/replicate.log")"
	(cd "$dir/gateway/fleet" && find . -name '*.db.lz4' -printf '%P\n') >"$dir/keys"
	[[ $(wc -l <"$dir/keys") -eq $n ]] || fail "$(wc -l <"$dir/keys") objects of $n databases"
	databases_in "$dir/restore-fleet" >"$dir/want"
	for ((i = -1; i < restore_runs; i++)); do # the first pair only warms up
		for side in $( ((i % 2)) && echo "plain ours" || echo "ours plain"); do
			sync -f "$dir"
			timed "restore_$side" "$dir/restored-$side-$i"
			cp "$dir/took" "$dir/took-$side"
			databases_in "$dir/restored-$side-$i" | cmp - "$dir/want" || fail "$side: other databases"
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
	ratio_row "restore of $n from S3, wall s" '%.2f' "<= 1.0" <"$dir/wall"
	ratio_row "restore of $n from S3, CPU s" '%.2f' "<= 0.6" <"$dir/cpu"
	note "restore: against $version and lz4 -d -m on $threads cores"
}
