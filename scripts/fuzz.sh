#!/usr/bin/env bash
# Builds the fuzz targets of tests/fuzz with clang's libFuzzer, AddressSanitizer and UBSan in build-fuzz/ and runs each for a time on its
# committed corpus. New inputs go to build-fuzz/corpus/TARGET, findings to build-fuzz/findings/TARGET-*; a table of executions, coverage
# and findings goes to standard output. Exit code 1 when there was a finding.
#   fuzz.sh [SECONDS] [TARGET...]      SECONDS of each target [600]; TARGET as in "safetensors" [all]
set -euo pipefail
cd "$(dirname "$0")/.."
build=build-fuzz
seconds=600
if [[ ${1:-} =~ ^[0-9]+$ ]]; then
  seconds=$1
  shift
fi
targets=("$@")
if [ ${#targets[@]} -eq 0 ]; then
  for source in tests/fuzz/fuzz_*.cpp; do
    name=${source##*/fuzz_}
    targets+=("${name%.cpp}")
  done
fi
clang=$(command -v clang++-14 || command -v clang++ || true)
if [ -z "$clang" ] || ! command -v "${clang/++/}" >/dev/null; then
  echo "fuzz.sh: no clang; apt-get install clang-14 libclang-rt-14-dev" >&2
  exit 69
fi

for target in "${targets[@]}"; do
  [ -e "tests/fuzz/fuzz_$target.cpp" ] || { echo "fuzz.sh: no target \"$target\"" >&2; exit 64; }
done
cmake -S . -B "$build" -G Ninja -DCMAKE_C_COMPILER="${clang/++/}" -DCMAKE_CXX_COMPILER="$clang" -DCMAKE_BUILD_TYPE=RelWithDebInfo \
  -DCMAKE_CXX_FLAGS_RELWITHDEBINFO="-O1 -gline-tables-only" -DPQ_CUDA=OFF -DPQ_SANITIZE=fuzzer-no-link,address,undefined >&2
cmake --build "$build" --target "${targets[@]/#/fuzz_}" >&2

export UBSAN_OPTIONS=print_stacktrace=1
export ASAN_OPTIONS=detect_leaks=1:allocator_may_return_null=0
failed=0
echo "| target | seconds | executions | coverage, edges | corpus | findings |"
echo "|---|---|---|---|---|---|"
for target in "${targets[@]}"; do
  mkdir -p "$build/corpus/$target" "$build/findings"
  log=$build/$target.log
  found=none
  # More than a minute or 2 GiB for one input is a finding; a busy machine must not make one of less.
  nice -n 19 "$build/bin/fuzz_$target" -max_total_time="$seconds" -timeout=60 -rss_limit_mb=2048 -max_len=65536 -print_final_stats=1 \
    -artifact_prefix="$build/findings/$target-" "$build/corpus/$target" "tests/fuzz/corpus/$target" >"$log" 2>&1 ||
    { found=$(sed -n 's/^SUMMARY: //p' "$log" | head -n 1); failed=1; }
  runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
  edges=$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$log" | tail -n 1)
  inputs=$(sed -n 's/.* corp: \([0-9]*\)\/.*/\1/p' "$log" | tail -n 1)
  echo "| $target | $seconds | $runs | $edges | $inputs | ${found:-see $log} |"
done
exit $failed
