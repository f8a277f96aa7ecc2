#!/usr/bin/env bash
# Installs what is missing, configures build/ and builds everything. Its output goes to stderr: callers own stdout.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/install_deps.sh
cmake --preset cpu >&2
cmake --build --preset cpu >&2
