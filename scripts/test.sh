#!/usr/bin/env bash
# Installs, builds and runs all tests. Arguments go to ctest, for instance: scripts/test.sh -L unit
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/build.sh
exec ctest --test-dir build --output-on-failure -j2 "$@"
