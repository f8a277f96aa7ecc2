#!/usr/bin/env bash
# Builds with AddressSanitizer and UBSan (build-asan/) and with ThreadSanitizer (build-tsan/) and runs the tests under each, MPI tests
# included; the CUDA plugin is left out. One line a preset goes to standard output, exit code 1 when a test failed. Each takes an hour on two cores.
#   sanitize.sh [asan | tsan] [CTEST ARGUMENTS...]      without a name: both
set -uo pipefail
cd "$(dirname "$0")/.." || exit 70
presets=(asan tsan)
case "${1-}" in
  asan | tsan) presets=("$1"); shift ;;
esac

scripts/install_deps.sh || exit
failed=0
for preset in "${presets[@]}"; do
  { cmake --preset "$preset" && cmake --build --preset "$preset"; } >&2 || exit 69
  log=build-$preset/sanitize.log
  # Everything takes three to twenty times as long.
  ctest --preset "$preset" --timeout 1200 "$@" >"$log" 2>&1 || { failed=1; grep -E '\*\*\*(Failed|Timeout|Exception)' "$log" >&2; }
  echo "$preset: $(grep -E 'tests passed|No tests' "$log"), $(grep -c '\*\*\*Skipped' "$log") skipped; $log"
done
exit $failed
