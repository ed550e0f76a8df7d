#!/bin/bash
#
# Shows that the tests see it when a line is gone that upholds an invariant of the
# design (make mutations).
#
#   tests/mutations/run.sh              every patch here
#   tests/mutations/run.sh I4 I7-dirty  those whose name begins so (ONLY= does the same)
#
# The first line of a patch says what it is about:
#
#   INVARIANT | what is broken | unit BINARY TEST
#                              | go PACKAGE TEST
#                              | e2e TEST
#
# (TEST of go and e2e is what -run takes.) In a copy of the tree each test runs once
# without a patch and must be green; then with it, and must be red for the right reason:
# it ran to its end, and an assertion of just this test failed. A patch that does not
# apply as it stands, does not build, or hangs is an error. The copy is build/mutations;
# it stays, so that the next run compiles little.
set -euo pipefail
cd "$(dirname "$0")/../.."

root="$PWD"
tree="$root/build/mutations"
log="$root/build/logs/mutations"
jobs="$(nproc)"
timeout_s=240
errors=0 red=0 survived=0

say() { printf '%-9s %-24s %s\n' "$@"; }

# The files of this tree as they are now, and of what make has prepared that which costs
# time. What is the same stays as it is: its time says what has to be compiled.
copy_tree() {
	local file
	local -A ours=([VERSION]=1)
	mkdir -p "$tree/build" "$log"
	while IFS= read -rd '' file; do
		[[ -e $file ]] || continue
		ours[$file]=1
		if ! cmp -s "$file" "$tree/$file"; then
			mkdir -p "$tree/$(dirname "$file")"
			cp "$file" "$tree/$file"
		fi
	done < <(git ls-files -z --cached --others --exclude-standard)
	while IFS= read -rd '' file; do
		[[ ${ours[$file]:-} ]] || rm -f "$tree/$file"
	done < <(cd "$tree" && find . -path ./build -prune -o -path ./bin -prune -o -type f ! -name archive_hash.go -printf '%P\0')
	echo 0 >"$tree/VERSION" # else each commit makes another binary
	# cmocka takes a filter, but from nobody outside.
	echo '#include <stdlib.h>
		void cmocka_set_test_filter(const char *pattern);
		__attribute__((constructor)) static void only(void) { cmocka_set_test_filter(getenv("ONLY_TEST")); }' |
		gcc -shared -fPIC -o "$tree/build/only_test.so" -x c - -lcmocka
	rm -rf "$tree/build/litestream" "$tree/build/tools"
	cp -al build/litestream build/tools "$tree/build/"
	cp build/litestream.version build/litestream.stamp "$tree/build/"
}

build() { # KIND BINARY
	case $1 in
	unit) make -s -j"$jobs" "build/unit/$2" ;;
	go) make -s -j"$jobs" build/go.work cgo/archive_hash.go ;;
	e2e) make -s -j"$jobs" bin/litestream ;;
	*) echo "unknown kind of test: $1"; return 1 ;;
	esac
}

run_test() { # KIND WHERE TEST
	case $1 in
	unit) ONLY_TEST="$3" LD_PRELOAD="$tree/build/only_test.so" timeout "$timeout_s" "build/unit/$2" ;;
	go) timeout "$timeout_s" go test -count=1 -timeout "$((timeout_s - 10))s" -run "$3" "./$2" ;;
	e2e) timeout "$timeout_s" go test -count=1 -timeout "$((timeout_s - 10))s" -run "$2" ./tests/e2e ;;
	esac
}

# The assertion of the test that failed, in one line; nothing if none did.
assertion() { # OUTPUT KIND WHERE TEST
	local where
	if [[ $2 == unit ]]; then
		grep -qE "^\[  FAILED  \] $4\$" "$1" || return 0
		where="$(sed -n -e 's/.*\[   LINE   \] --- \(.*\): error: .*/\1/p' "$1" | head -1)"
		[[ -z $where ]] || echo "$where: $(sed -n "${where##*:}s/^[[:space:]]*//p" "${where%:*}")"
		return 0
	fi
	if grep -qE '^panic: |^signal: |\[build failed\]|\[setup failed\]' "$1" || ! grep -q '^ *--- FAIL: ' "$1"; then
		return 0
	fi
	grep -m1 -oE '[a-z0-9_]+_test\.go:[0-9]+: .*' "$1" | cut -c1-160 || true
}

# Each test once without a patch.
declare -A green=()
check_unmutated() { # KIND WHERE TEST
	[[ -z ${green[$*]:-} ]] || return 0
	if ! build "$@" >"$log/build.log" 2>&1; then
		tail -20 "$log/build.log"
		return 1
	fi
	if ! run_test "$@" >"$log/unmutated.log" 2>&1; then
		tail -40 "$log/unmutated.log"
		return 1
	fi
	green[$*]=1
}

fail() { # NAME WHY [LOG]
	say ERROR "$1" "$2"
	[[ -z ${3:-} ]] || tail -20 "$3"
	errors=$((errors + 1))
}

mutate() { # PATCH
	local name header invariant what how rc=0 words why out
	name="$(basename "$1" .patch)" out="$log/$name.log"
	header="$(head -1 "$1")"
	IFS='|' read -r invariant what how <<<"$header"
	read -ra words <<<"$how"
	if [[ ${invariant// /} != "${name%%-*}" || ${#words[@]} -lt 2 ]]; then
		fail "$name" "its first line is not: ${name%%-*} | what | kind ...: $header"
		return
	fi
	if ! check_unmutated "${words[@]}"; then
		fail "$name" "not green without it: ${words[*]}"
		return
	fi
	if ! patch -p1 --fuzz=0 --no-backup-if-mismatch --dry-run <"$1" >"$out" 2>&1; then
		fail "$name" "does not apply" "$out"
		return
	fi
	patch -p1 --fuzz=0 --silent --no-backup-if-mismatch <"$1"
	if build "${words[@]}" >"$log/build.log" 2>&1; then
		run_test "${words[@]}" >"$out" 2>&1 || rc=$?
		why="$(assertion "$out" "${words[@]}")"
		if [[ $rc -eq 0 ]]; then
			say SURVIVED "$name" "${words[*]}: passes although$what"
			survived=$((survived + 1))
		elif [[ $rc -eq 124 || -z $why ]]; then
			fail "$name" "${words[*]}: ends with $rc, but no assertion of it failed" "$out"
		else
			say pass: "$name" "$why"
			red=$((red + 1))
		fi
	else
		fail "$name" "does not build" "$log/build.log"
	fi
	patch -p1 -R --fuzz=0 --silent --no-backup-if-mismatch <"$1"
}

main() {
	local patches=() name patch start=$SECONDS
	export GOFLAGS=-buildvcs=false GOWORK="$tree/build/go.work" CGO_ENABLED=1
	export VERSITYGW="$tree/build/tools/versitygw"
	[[ $# -gt 0 ]] || read -ra args <<<"${ONLY:-I}"
	[[ $# -eq 0 ]] || args=("$@")
	for name in "${args[@]}"; do
		for patch in tests/mutations/"$name"*.patch; do
			[[ -e $patch ]] || { echo "tests/mutations/run.sh: no patch $name" >&2; exit 2; }
			[[ $name != I[0-9] || $patch == tests/mutations/"$name"-* ]] || continue
			patches+=("$root/$patch")
		done
	done
	copy_tree
	cd "$tree"
	for patch in "${patches[@]}"; do
		mutate "$patch"
	done
	echo "$red of ${#patches[@]} mutations are seen, $survived survived, $errors errors, $((SECONDS - start)) s"
	[[ $red -eq ${#patches[@]} ]]
}

args=()
main "$@"
