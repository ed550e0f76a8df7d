#!/bin/bash
# shellcheck disable=SC2317 # functions are called by name
#
# The ABI stands alone: backup.c sees <ultrasimple.h> and the archive, nothing
# else; as C11 and as C++17 it backs up a directory and restores what was there.
set -euo pipefail
cd "$(dirname "$0")/../.."

dir="$(mktemp -d "${TMPDIR:-/tmp}/us-abi.XXXXXX")"
writer=
cleanup() {
	if [[ -n $writer ]]; then
		kill "$writer" 2>/dev/null || true
	fi
	rm -rf "$dir"
}
trap cleanup EXIT

# shellcheck disable=SC2206 # ARCHIVE may hold what it needs, too
libs=(${ARCHIVE:-build/libultrasimple.a} -lcurl -llz4 -lsqlite3 -lexpat -lssl -lcrypto -lpthread -lm)
strict=(-pedantic-errors -Wall -Wextra -Werror -O2 -Icsrc/include)
gcc -std=c11 "${strict[@]}" -o "$dir/backup-c" tests/abi/backup.c "${libs[@]}"
cxx=g++
command -v g++ >/dev/null || cxx=clang++
"$cxx" -std=c++17 "${strict[@]}" -o "$dir/backup-c++" -x c++ tests/abi/backup.c -x none "${libs[@]}"
echo "pass: backup.c compiles as C11 and C++17"

# Databases at rest, in both journal modes; one whose commits are in its -wal alone,
# held open for as long as this runs.
mkdir "$dir/src"
for mode in delete wal; do
	for i in 1 2 3; do
		sqlite3 "$dir/src/$mode-$i.db" "PRAGMA journal_mode=$mode" \
			"CREATE TABLE t (id INTEGER PRIMARY KEY, body TEXT)" \
			"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < $i * 500)
			 INSERT INTO t SELECT i, 'row ' || i || ' of $mode-$i' FROM n" >"$dir/sqlite3.log"
	done
done
mkfifo "$dir/hold"
sqlite3 "$dir/src/open.db" <"$dir/hold" >"$dir/writer.log" 2>&1 &
writer=$!
exec 3>"$dir/hold"
cat >&3 <<-SQL
	PRAGMA journal_mode=wal;
	PRAGMA wal_autocheckpoint=0;
	CREATE TABLE t (id INTEGER PRIMARY KEY, body TEXT);
	INSERT INTO t VALUES (1, 'only in the -wal');
	SELECT 'ready';
SQL
for _ in $(seq 100); do
	! grep -q ready "$dir/writer.log" || break
	sleep 0.1
done
grep -q ready "$dir/writer.log"
[[ -s $dir/src/open.db-wal ]]
sleep 0.1 # older than a tick of the file system's clock

failed=0
check() { # NAME COMMAND...
	if "${@:2}"; then
		echo "pass: $1"
	else
		echo "FAIL: $1"
		failed=1
	fi
}

# What SQLite makes of DATABASE, which is not touched: the dump of a copy.
dump_copy() {
	rm -f "$dir/copy.db"*
	cp "$1" "$dir/copy.db"
	[[ ! -e $1-wal ]] || cp "$1-wal" "$dir/copy.db-wal"
	sqlite3 "$dir/copy.db" .dump
}

same() { # SOURCE RESTORED
	cmp <(dump_copy "$1") <(sqlite3 "$2" .dump) && [[ ! -e $2-wal ]] || return 1
	[[ -s $1-wal ]] || cmp "$1" "$2"
}

for lang in c c++; do
	target="$dir/target-$lang" state="$dir/state-$lang"
	before="$(cd "$dir/src" && stat -c '%n %s %y %i' -- *)"
	out="$("$dir/backup-$lang" backup "$dir/src" "$target" "$state")"
	check "$lang: backup" test "$out" = "databases 7 uploaded 7 failed 0 unsynced 0"
	out="$("$dir/backup-$lang" backup "$dir/src" "$target" "$state")"
	check "$lang: nothing to do the second time" test "$out" = "databases 7 uploaded 0 failed 0 unsynced 0"
	check "$lang: sources untouched" test "$before" = "$(cd "$dir/src" && stat -c '%n %s %y %i' -- *)"
	mkdir "$dir/out-$lang"
	for db in "$dir"/src/*.db; do
		restored="$dir/out-$lang/$(basename "$db")"
		"$dir/backup-$lang" restore "$dir/src" "$target" "$state" "$db" "$restored" >"$dir/restore.log"
		check "$lang: $(basename "$db") restored" same "$db" "$restored"
	done
	rc=0
	"$dir/backup-$lang" restore "$dir/src" "$target" "$state" "$dir/src/none.db" "$dir/none.db" \
		2>"$dir/none.log" || rc=$?
	check "$lang: a database without backup is an error" test "$rc" = 1 -a ! -e "$dir/none.db"
done
exec 3>&-
exit $failed
