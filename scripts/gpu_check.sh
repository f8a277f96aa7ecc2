#!/usr/bin/env bash
# Everything that needs a GPU, in one run: build, kernel tests against the reference, sanitizers on them, the demo model on 1 and 2 ranks,
# a memory cap, benchmarks. Says what it lacks and goes on; ends with a table for tests/gpu/RESULTS.md. Needs no network when the packages
# of scripts/install_deps.sh and nvcc are there.
#   gpu_check.sh [OUTPUT_DIR]
set -uo pipefail
cd "$(dirname "$0")/.." || exit 70
build=build
out=${1:-$build/gpu}
mkdir -p "$out"
rows=()
failed=0

note() { rows+=("| $1 | $2 |"); }

# check NAME COMMAND...: runs it with a log, notes what came of it.
check() {
  local name=$1 log
  log="$out/$(tr ' /' '__' <<<"$1").log"
  shift
  local start=$SECONDS
  if "$@" >"$log" 2>&1; then
    note "$name" "passed, $((SECONDS - start)) s"
  else
    note "$name" "FAILED with code $?: $(tail -n 1 "$log" | cut -c1-160)"
    failed=1
  fi
}

if ! command -v nvidia-smi >/dev/null || ! device=$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | head -n 1); then
  echo "gpu_check.sh: no GPU answers here (nvidia-smi); nothing was checked" >&2
  exit 69
fi
command -v nvcc >/dev/null || { echo "gpu_check.sh: no nvcc on PATH; nothing was checked" >&2; exit 69; }
note "device" "$device"
note "nvcc" "$(nvcc --version | sed -n 's/.*release \([^,]*\).*/\1/p')"
note "commit" "$(git rev-parse --short HEAD 2>/dev/null || echo unknown)"

check "build" scripts/build.sh
check "kernel tests on the GPU" env PQ_REQUIRE=cuda ctest --test-dir "$build" -R '[Cc]uda' --output-on-failure
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    check "compute-sanitizer $tool" compute-sanitizer --tool "$tool" --error-exitcode 9 \
      "$build/bin/kernels_test" --gtest_filter='*cuda*'
  done
else
  note "compute-sanitizer" "not on this machine"
fi

# hash RANKS FLAGS...: of all logits of a short run on the demo model.
hash() {
  local ranks=$1
  shift
  launch/pq -np "$ranks" pq-run -m tests/data/demo -p "Once upon a time there was a patient little bear" -n 24 --temp 0 --json \
    --logits-hash --device cuda "$@" 2>>"$out/demo.log" | sed -n 's/.*"logits_hash": *"\([0-9a-f]*\)".*/\1/p'
}
one=$(hash 1)
two=$(hash 2 --share-device)
cut=$(hash 1 -b 7)
if [ -n "$one" ] && [ "$one" = "$two" ] && [ "$one" = "$cut" ]; then
  note "demo model, logits of 1 rank, 2 ranks, other cuts" "equal bits"
else
  note "demo model, logits of 1 rank, 2 ranks, other cuts" "DIFFER: '$one' '$two' '$cut'"
  failed=1
fi
launch/pq -np 2 pq-run -m tests/data/demo -p a -n 1 --device cuda 2>"$out/shared.err"
if [ $? -eq 64 ]; then
  note "two ranks on one device without --share-device" "refused"
else
  note "two ranks on one device without --share-device" "NOT REFUSED"
  failed=1
fi

bench() {
  local log="$out/bench ${*// /_}.json"
  if launch/pq -np 1 pq-bench "$@" --geometry qwen3.5-27b --device cuda --json >"${log// /_}" 2>>"$out/bench.log"; then
    note "pq-bench $*" "$(basename "${log// /_}")"
  else
    note "pq-bench $*" "FAILED: $(tail -n 1 "$out/bench.log" | cut -c1-160)"
    failed=1
  fi
}
bench decode -n 64
bench decode -n 64 --parallel 4
bench prefill -p 512
bench prefill -p 4096 -r 2
bench kernels -r 3
check "rank 0 of 2 within 10 GB" launch/pq -np 2 pq-bench decode -n 8 -d 1024 --geometry qwen3.5-27b --device cuda --share-device \
  --memory 10GB

{
  echo "| what | result |"
  echo "|---|---|"
  printf '%s\n' "${rows[@]}"
} | tee "$out/table.md"
exit $failed
