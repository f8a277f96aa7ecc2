#!/usr/bin/env bash
# The goals for a GPU beside what pq-bench measured, as the table of tests/gpu/RESULTS.md. Reads the JSON reports that gpu_check.sh
# left in DIR; a figure whose report is not there is "not measured". Exit code 1 when the device memory of a rank exceeds its goal.
#   gpu_goals.sh DIR [USED PROCESSES]      for memory.json: bytes of a device in use before, and processes that shared it [0 1]
set -uo pipefail
dir=${1?"gpu_goals.sh DIR [USED PROCESSES]"}
used=${2:-0}
processes=${3:-1}

# values FILE KEY NAMES [EXCEPT]: that column of the rows whose name matches, one a line. pq-bench writes a key a line.
values() {
  [ -s "$dir/$1" ] || return 0
  awk -v key="\"$2\":" -v names="$3" -v except="${4-}" '
    $1 == "\"name\":" { name = $0; sub(/^ *"name": "/, "", name); sub(/",?$/, "", name) }
    $1 == key && name ~ names && (except == "" || name !~ except) { sub(/,$/, "", $2); print $2 }' "$dir/$1"
}

# row WHAT GOAL MEASURED
row() { echo "| $1 | $2 | ${3:-not measured} |"; }

# shapes FILE: of the products of one token, 5 bits.
shapes() {
  values "$1" read_fraction '^[0-9]+ times .*pq5.*, 1 token$' ' with ' | awk '
    { sum += $1; if (NR == 1 || $1 < least) least = $1 }
    END { if (NR) printf "%.1f %% over %d shapes, the lowest %.1f %%", 100 * sum / NR, NR, 100 * least }'
  values "$1" read_fraction '^all [0-9]+ products of a step, 1 token$' | awk '{ printf "; as a step calls them %.1f %%", 100 * $1 }'
}

# ratio FILE NAME NAME: of their median times.
ratio() {
  { values "$1" median_ms "$2"; values "$1" median_ms "$3"; } | awk '{ ms[NR] = $1 } END { if (NR == 2) printf "%.2f", ms[2] / ms[1] }'
}

# joined TEXT PART...: what there is, with semicolons.
joined() {
  local text='' part
  for part in "$@"; do [ -z "$part" ] || text="$text${text:+; }$part"; done
  echo "$text"
}

prefill=()
for way in codes cublas; do
  rate=$(values "prefill_$way.json" tokens_per_second '^prefill 4096$' | head -n 1)
  [ -z "$rate" ] || prefill+=("$(printf '%.0f tok/s by %s' "$rate" "$way")")
done
products=$(ratio kernels.json '^all [0-9]+ products of a step, 1 token$' '^all [0-9]+ products of a step, 4 tokens$')
steps=$(ratio parallel.json '^decode at depth 1024$' '^decode at depth 1024, 4 sequences$')
# Of rank 0; what is taken of a device that several share is theirs together.
bytes=
[ ! -s "$dir/memory.json" ] || bytes=$(awk -v used="$used" -v processes="$processes" '
  $1 == "\"taken\":" { sub(/,$/, "", $2); printf "%.0f", ($2 - used) / processes; exit }' "$dir/memory.json")

echo "| on this device, 27B geometry, 5 bits | goal | measured |"
echo "|---|---|---|"
row "products of one token, mean over the shapes, of the copy bandwidth" "at least 80 %" "$(shapes kernels.json)"
row "the same over the slices of 2 ranks" "at least 80 %" "$(shapes slice.json)"
row "decode step, one rank, 1k context" "at least 180 tok/s" \
  "$(values decode.json tokens_per_second '^decode at depth 1024$' | awk '{ printf "%.1f tok/s", $1 }')"
row "four tokens in one pass over the weights" "at most 1.25 times the time of one" \
  "$(joined "${products:+$products for the products of a step}" "${steps:+$steps for a step of four sequences}")"
row "prefill of 4,096 tokens" "at least 8,000 tok/s" "$(joined "${prefill[@]}")"
row "Gated DeltaNet layer of one token, 48 value heads" "at most 6 us" \
  "$(values kernels.json median_ms '^gated_delta_layer, 1 token$' | awk '{ printf "%.2f us", 1000 * $1 }')"
row "device memory, rank 0 of 2, 16k context" "at most 10e9 bytes" "${bytes:+$(awk -v b="$bytes" 'BEGIN { printf "%.3fe9 bytes", b / 1e9 }')}"
[ -z "$bytes" ] || [ "$bytes" -le 10000000000 ]
