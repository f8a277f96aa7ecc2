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
    --logits-hash "$@" 2>>"$out/demo.log" | sed -n 's/.*"logits_hash": *"\([0-9a-f]*\)".*/\1/p'
}
# same NAME HASH EXPECTED
same() {
  if [ -n "$2" ] && [ "$2" = "$3" ]; then
    note "$1" "equal bits"
  else
    note "$1" "DIFFERS: '$2' instead of '$3'"
    failed=1
  fi
}
# The promise of src/ARCHITECTURE.md: a GPU gives the bits of a CPU, whatever the ranks, the cut and the way to add.
cpu=$(hash 1 --device cpu)
same "demo model on the GPU against the CPU" "$(hash 1 --device cuda)" "$cpu"
same "demo model, prompt cut by 7" "$(hash 1 --device cuda -b 7)" "$cpu"
same "demo model, 8-bit cache" "$(hash 1 --device cuda --kv-type q8)" "$(hash 1 --device cpu --kv-type q8)"
same "demo model, f32 activations" "$(hash 1 --device cuda --activations f32)" "$(hash 1 --device cpu --activations f32)"
devices=$(nvidia-smi --query-gpu=index --format=csv,noheader | wc -l)
share=(--share-device)
[ "$devices" -ge 2 ] && share=()
for way in auto p2p host nccl mpi; do
  if [ "$way" = nccl ] && [ "$devices" -lt 2 ]; then
    note "2 ranks, --allreduce nccl" "NCCL refuses two ranks on the one device of this machine; not checked"
    continue
  fi
  same "2 ranks, --allreduce $way" "$(hash 2 --device cuda "${share[@]}" --allreduce "$way")" "$cpu"
done
note "ways to add" "$(grep -o 'GPUs add by.*' "$out/demo.log" | head -n 1)"
# refused NAME CODE COMMAND...: one line on stderr and that code.
refused() {
  local name=$1 code=$2 got
  shift 2
  "$@" >/dev/null 2>"$out/refused.err"
  got=$?
  if [ $got -eq "$code" ] && [ "$(grep -vc 'GPUs add by' "$out/refused.err")" -eq 1 ]; then
    note "$name" "refused: $(tail -n 1 "$out/refused.err" | cut -c1-160)"
  else
    note "$name" "NOT REFUSED AS IT SHOULD: code $got, $(wc -l <"$out/refused.err") lines"
    failed=1
  fi
}
[ "$devices" -eq 1 ] && refused "two ranks on one device" 64 launch/pq -np 2 pq-run -m tests/data/demo -p a -n 1 --device cuda
refused "a cap below the CUDA context" 64 launch/pq -np 1 pq-run -m tests/data/demo -p a -n 1 --device cuda --memory 100MB
refused "a cap below the model" 69 launch/pq -np 1 pq-run -m tests/data/demo -p a -n 1 --device cuda --memory 451MB

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
