#!/bin/bash
#
# Fault injection (make faults): every system call and allocation of the core fails in turn
# (fault.c), and the file target and the state are looked at as a power cut at any point of
# what was written leaves them (power.c).
#
#   tests/fault/run.sh                       one fault for each place in the code, some cuts
#   DURATION=20m SEED=1 tests/fault/run.sh   every call with every errno, for half of the
#                                            time; then the faults of the network
set -euo pipefail
cd "$(dirname "$0")/../.."

seconds() {
	case "$1" in
	*h) echo $((${1%h} * 3600)) ;;
	*m) echo $((${1%m} * 60)) ;;
	*s) echo "${1%s}" ;;
	*) echo "$1" ;;
	esac
}

# Every function tells the shim that it was entered, so that a failing call has a place.
flags=(-fno-pie -finstrument-functions -finstrument-functions-exclude-file-list=base/bytes.h
	-U_FORTIFY_SOURCE -Wno-attributes)
make -s -j"$(nproc)" OUT=build/fault WERROR= EXTRA_CFLAGS="${flags[*]}" build/fault/libultrasimple.a
for program in fault power; do
	gcc -std=gnu17 -O2 -g -D_GNU_SOURCE -Wall -Wextra -Icsrc/include -Itests/fault -fno-pie -no-pie \
		-rdynamic -Wl,--wrap=us_store_s3_open -o "build/fault/$program" \
		tests/fault/{"$program",shim,fleet,target,place}.c build/fault/libultrasimple.a \
		-lcurl -llz4 -lsqlite3 -lssl -lcrypto -lexpat -lm -pthread -ldl
done

jobs=$((2 * $(nproc)))
if [[ -z ${DURATION:-} ]]; then
	build/fault/fault -jobs "$jobs"
	build/fault/power
	exit
fi
limit=$(($(seconds "$DURATION") / 4))
build/fault/fault -full -seed "${SEED:-1}" -seconds "$limit" -jobs "$jobs"
build/fault/power -full -seed "${SEED:-1}" -seconds "$limit"
DURATION="$((2 * limit))s" SEED="${SEED:-1}" go test -v -count=1 -timeout 0 -run '^TestNetworkFaultsLong$' ./tests/e2e/
