#!/usr/bin/env bash
# Registers, spills and shared memory of every CUDA kernel, by architecture, as the table of tests/gpu/RESULTS.md: compiles
# kernels/cuda/*.cu, or the files named, with the flags of CMakeLists.txt and reads what ptxas says. Needs nvcc, no GPU.
#   kernel_registers.sh [--arch "80 86 89 90 120"] [FILE.cu...]
set -euo pipefail
cd "$(dirname "$0")/.."

architectures="80 86 89 90 120"
if [ "${1-}" = --arch ]; then
  architectures=${2?"--arch needs numbers, as in --arch \"80 90\""}
  shift 2
fi
command -v nvcc >/dev/null || { echo "kernel_registers.sh: no nvcc on PATH" >&2; exit 69; }
filter=c++filt
command -v cu++filt >/dev/null && filter=cu++filt
command -v "$filter" >/dev/null || { echo "kernel_registers.sh: neither cu++filt nor c++filt on PATH" >&2; exit 69; }
if [ $# -gt 0 ]; then
  files=("$@")
else
  mapfile -t files < <(grep -l __global__ kernels/cuda/*.cu)
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
for file in "${files[@]}"; do
  for architecture in $architectures; do
    if ! nvcc -cubin -o /dev/null "-arch=sm_$architecture" -std=c++20 -O3 -DNDEBUG --fmad=false --expt-relaxed-constexpr -I. -Isrc \
      -Xptxas -v "$file" >"$log" 2>&1; then
      cat "$log" >&2
      exit 1
    fi
    # One line a kernel: architecture, registers, spilled bytes, shared bytes, name.
    awk -v architecture="$architecture" '
      /Compiling entry function/ { split($0, part, "\047"); name = part[2]; spilled = 0 }
      /spill stores/ { for (i = 2; i <= NF; i++) if ($i == "spill" && $(i + 1) ~ /^stores/) spilled = $(i - 2) }
      /Used [0-9]+ registers/ {
        shared = 0
        for (i = 2; i <= NF; i++) {
          if ($i == "Used") registers = $(i + 1)
          if ($i ~ /^smem/) shared = $(i - 2)
        }
        if (name != "") print architecture, registers, spilled, shared, name
        name = ""
      }' "$log"
  done
done | "$filter" | awk -v architectures="$architectures" '
  # The name alone: no type, no namespaces, no parameters.
  function short(name) {
    gsub(/\(anonymous namespace\)::|\(unnamed namespace\)::|<unnamed>::|pq::cuda::|pq::/, "", name)
    sub(/\([^()]*\)( \[.*)?$/, "", name)
    sub(/^void /, "", name)
    return name
  }
  {
    registers = $2
    if ($3 > 0) registers = registers " (" $3 ")"
    architecture = $1
    shared = $4
    sub(/^[0-9]+ [0-9]+ [0-9]+ [0-9]+ /, "")
    name = short($0)
    if (!(name in seen)) {
      order[++count] = name
      seen[name] = 1
    }
    cell[name, architecture] = registers
    if (shared > bytes[name]) bytes[name] = shared
  }
  END {
    n = split(architectures, column, " ")
    header = "| kernel | shared bytes |"
    rule = "|---|---|"
    for (i = 1; i <= n; i++) {
      header = header " sm_" column[i] " |"
      rule = rule "---|"
    }
    print header
    print rule
    for (k = 1; k <= count; k++) {
      line = "| `" order[k] "` | " bytes[order[k]] + 0 " |"
      for (i = 1; i <= n; i++) line = line " " cell[order[k], column[i]] " |"
      print line
    }
  }'
