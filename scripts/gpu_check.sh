#!/usr/bin/env bash
# Everything that needs a GPU, in one run: build, kernel tests against the reference, sanitizers on them, the demo model on 1 and 2 ranks,
# golden models, a memory cap, benchmarks. Says what it lacks and goes on; ends with the goals (gpu_goals.sh) and a table of everything, for
# tests/gpu/RESULTS.md, and exit code 0 when nothing failed, 1 when something did or a rank took more memory than its goal allows, 69
# without a GPU or nvcc. Needs no network when the packages of scripts/install_deps.sh are there.
#   gpu_check.sh [OUTPUT_DIR]
set -uo pipefail
cd "$(dirname "$0")/.." || exit 70
# Where NVIDIA's packages leave nvcc and compute-sanitizer.
PATH=$PATH:/usr/local/cuda/bin
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
note "commit" "$(git rev-parse --short HEAD 2>/dev/null || echo unknown)$(git diff --quiet HEAD 2>/dev/null || echo ', changed')"
note "date" "$(date -u +%F)"
note "GPUs" "$(nvidia-smi --query-gpu=index --format=csv,noheader | wc -l), compute capability $(
  nvidia-smi --query-gpu=compute_cap --format=csv,noheader | sort -u | paste -sd ' '), $(
  nvidia-smi --query-gpu=memory.total --format=csv,noheader | sort -u | paste -sd ' ')"
for tool in mpirun cmake ninja; do command -v "$tool" >/dev/null || note "$tool" "not on this machine: scripts/install_deps.sh installs it"; done
[ -e /usr/include/nccl.h ] || [ -e "$(dirname "$(dirname "$(command -v nvcc)")")/include/nccl.h" ] ||
  note "nccl.h" "not on this machine: the plugin is built without NCCL"

check "build" scripts/build.sh
if [ ! -e "$build/bin/libpq_cuda.so" ]; then
  note "CUDA plugin" "NOT BUILT: what follows would say nothing; see the log of the build"
  printf '| what | result |\n|---|---|\n' | tee "$out/table.md"
  printf '%s\n' "${rows[@]}" | tee -a "$out/table.md"
  exit 1
fi
# Without the header or the library everything by cuBLAS is lacking, which is no failure.
cublas=1
tests='*/cuda'
lacking=$(launch/pq -np 1 pq-run -m tests/data/demo -p a -n 1 --device cuda --prefill cublas 2>&1 >/dev/null | grep -o -m 1 'no cuBLAS: .*')
if [ -n "$lacking" ]; then
  cublas=0
  tests="$tests:-*WideProducts*:*ByTensorCores*"
  note "everything by cuBLAS" "not run: ${lacking:0:160}"
fi
# The emulated kernels are no question for a GPU.
check "kernel tests on the GPU" env PQ_REQUIRE=cuda "$build/bin/kernels_test" --gtest_filter="$tests"
note "kernel tests run" "$(grep -c '^\[       OK \]' "$out/kernel_tests_on_the_GPU.log") passed, $(
  grep -c '^\[  SKIPPED \] .*ms)' "$out/kernel_tests_on_the_GPU.log") skipped"
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    check "compute-sanitizer $tool" compute-sanitizer --tool "$tool" --error-exitcode 9 \
      "$build/bin/kernels_test" --gtest_filter="$tests"
  done
else
  note "compute-sanitizer" "not on this machine: memcheck and racecheck were not run"
fi

check "golden models on the GPU" env PQ_REQUIRE=cuda "$build/bin/golden_test" --gtest_filter='*/cuda'

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
# Its promise: the same bits again, and not those of the default, which would say that it was not used.
if [ $cublas -eq 1 ]; then
  tale=$(for _ in 1 2 3 4 5 6 7 8; do printf 'Once upon a time there was a patient little bear who lived near a river. '; done)
  wide=$(hash 1 --device cuda --prefill cublas -p "$tale")
  same "--prefill cublas, twice" "$(hash 1 --device cuda --prefill cublas -p "$tale")" "$wide"
  if [ "$wide" = "$(hash 1 --device cuda -p "$tale")" ]; then
    note "--prefill cublas" "NOT USED: the logits are those of --prefill codes"
    failed=1
  fi
  two=$(hash 2 --device cuda "${share[@]}" --prefill cublas -p "$tale")
  note "--prefill cublas, 2 ranks" "$([ "$two" = "$wide" ] && echo "equal bits, which is not promised" || echo "other bits, as is allowed")"
fi
ways=(codes)
[ $cublas -eq 0 ] || ways+=(cublas)
for way in "${ways[@]}"; do
  check "perplexity with --prefill $way" launch/pq -np 1 pq-ppl -m tests/data/demo -f tests/data/demo/eval.txt --protocol gptq-2048 --ctx 256 --windows 16 --device cuda --prefill "$way"
  note "its perplexity" "$(grep -i -m 1 perplexity "$out/perplexity_with_--prefill_$way.log" | cut -c1-160)"
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
[ $cublas -eq 0 ] || refused "a cap below the CUDA context with cuBLAS" 64 launch/pq -np 1 pq-run -m tests/data/demo -p a -n 1 \
  --device cuda --memory 600MB --prefill cublas
refused "a cap below the model" 69 launch/pq -np 1 pq-run -m tests/data/demo -p a -n 1 --device cuda --memory 456MB

# summary FILE NAMES: the rows of a report whose name matches, as "name value; ...", and the rate at which the device copies.
summary() {
  awk -v names="$2" '
    $1 == "\"name\":" { name = $0; sub(/^ *"name": "/, "", name); sub(/",?$/, "", name) }
    { value = $2; sub(/,$/, "", value) }
    $1 == "\"median_ms\":" { ms = value }
    $1 == "\"tokens_per_second\":" { rate = value }
    $1 == "\"share\":" && name ~ names {
      text = text (text == "" ? "" : "; ") name " " (rate + 0 > 0 ? sprintf("%.1f tok/s", rate) : sprintf("%.1f us", 1000 * ms))
    }
    $1 == "\"read_bytes_per_second\":" && copy == 0 { copy = value }
    END { printf "%s; copy %.0f GB/s\n", text, copy / 1e9 }' "$1"
}
# bench FILE NAMES ARGUMENTS...: of pq-bench, ${ranks:-1} of them. The report goes to reports/FILE.json, its rows of those names to the
# table.
bench() {
  local json="$reports/$1.json" names=$2
  shift 2
  if launch/pq -np "${ranks:-1}" pq-bench "$@" --geometry qwen3.5-27b --device cuda --json >"$json" 2>>"$out/bench.log"; then
    note "pq-bench $*" "$(summary "$json" "$names")"
  else
    rm -f "$json"
    note "pq-bench $*" "FAILED: $(tail -n 1 "$out/bench.log" | cut -c1-160)"
    failed=1
  fi
}
reports=$out/reports
rm -rf "$reports"
mkdir -p "$reports"
bench decode . decode -n 64 -d 1024
bench deep . decode -n 64 -d 16384
bench parallel . decode -n 64 -d 1024 --parallel 1,2,4,8
bench breakdown . decode -n 16 -d 1024 --breakdown
bench prefill . prefill -p 512,4096,16384 -r 2
for way in "${ways[@]}"; do
  bench "prefill_$way" . prefill -p 512,4096,16384 -r 2 -b 2048 --prefill "$way"
  bench "prefill_pq4_$way" . prefill -p 512 -r 2 -b 512 --format pq4 --prefill "$way"
done
bench kernels ', 1 token$' kernels -r 3
for bits in 2 3 4 6 8; do bench "kernels_pq$bits" '^all .* of a step, ' kernels -r 3 --format "pq$bits"; done
# Two ranks that shared a device would take turns.
bench slice ', 1 token$' kernels -r 3 --slice-of 2
[ $cublas -eq 0 ] || bench kernels_cublas ', 2048 tokens$' kernels -r 3 -b 2048 -c 2048 --prefill cublas
bench quantize . quantize -r 3
ranks=2 bench comm . comm "${share[@]}"
# The plan must hold, and the device must have no more of it taken than the goal allows: a rank of 2, 16k positions, 10 GB.
used=$(nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits | head -n 1)
[[ $used =~ ^[0-9]+$ ]] || used=0
processes=$((devices >= 2 ? 1 : 2))
ranks=2 bench memory . decode -n 8 -d 1024 -c 16384 "${share[@]}" --memory 10GB
if [ $cublas -eq 1 ]; then
  check "rank 0 of 2 within 10 GB, with cuBLAS" launch/pq -np 2 pq-bench prefill -p 4096 -r 1 --geometry qwen3.5-27b \
    --device cuda "${share[@]}" --memory 10GB --prefill cublas
  note "its memory" "$(grep -h '^rank 0: device' "$out"/rank_0_of_2_within_10_GB,_with*.log | head -n 1)"
fi

scripts/gpu_goals.sh "$reports" $((used * 1048576)) "$processes" >"$out/goals.md" || failed=1
{
  cat "$out/goals.md"
  echo
  echo "| what | result |"
  echo "|---|---|"
  printf '%s\n' "${rows[@]}"
} | tee "$out/table.md"
exit $failed
