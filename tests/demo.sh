#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The main job, on this machine alone: 1,000 databases are backed up by
# bin/litestream into a directory, ten are deleted and brought back. Called by
# `make demo`. KEEP=1 leaves the files. Exit 1 if anything differs.
set -eu
cd "$(dirname "$0")/.."
GOFLAGS='' GOWORK=off exec go run -trimpath -buildvcs=false ./tests/demo "$@"
