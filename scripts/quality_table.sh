#!/usr/bin/env bash
# Prints what quantisation costs a model, as a Markdown table: the rows of PolarQuant's published table on any Hugging Face directory.
#   quality_table.sh MODEL TEXT [PROTOCOL [NP [PQ_PPL_FLAGS...]]]
# Every row is the same checkpoint quantised while loading on NP ranks (default 1). The difference of the mean NLL is paired token by
# token with the BF16 row. PQ_BIN names the directory of the programs (default build/bin).
set -euo pipefail

if [ $# -lt 2 ]; then
  echo "usage: quality_table.sh MODEL TEXT [PROTOCOL [NP [PQ_PPL_FLAGS...]]]" >&2
  exit 64
fi
model=$1
text=$2
protocol=${3:-gptq-2048}
np=${4:-1}
shift $(($# < 4 ? $# : 4))

root=$(cd "$(dirname "$0")/.." && pwd)
bin=${PQ_BIN:-$root/build/bin}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# field NAME FILE: a top-level number or string of a JSON object that has one member a line.
field() {
  if command -v jq >/dev/null; then
    jq -r --arg name "$1" '.[$name]' "$2"
  else
    sed -n -e "s/^ *\"$1\": \"\(.*\)\",\{0,1\}\$/\1/p" -e "s/^ *\"$1\": \([^\",]*\),\{0,1\}\$/\1/p" "$2"
  fi
}

header() {
  local result=$work/result.json
  echo "Protocol $(field protocol "$result"), $(field scored_tokens "$result") tokens scored in $(field windows "$result") windows," \
    "activations $(field activations "$result") for PQ weights, text sha256 $(field text_sha256 "$result" | cut -c 1-16)…"
  echo
  echo "| weights | perplexity | Δ | Δ mean NLL, paired | bits per weight | MB |"
  echo "|---|---|---|---|---|---|"
}

# row TITLE FLAGS...: the first row is the base of the differences.
row() {
  local title=$1 result=$work/result.json base=$work/base.nll compare=() difference="—"
  shift
  if [ -e "$base" ]; then compare=(--compare-nll "$base"); else compare=(--nll-out "$base"); fi
  "$root/launch/pq" -np "$np" "$bin/pq-ppl" -m "$model" -f "$text" --protocol "$protocol" --json "${compare[@]}" "$@" \
    >"$result" 2>"$work/log" || { local code=$?; cat "$work/log" >&2; exit "$code"; }
  [ -n "${base_perplexity:-}" ] || base_perplexity=$(field perplexity "$result")
  if [ "${compare[0]}" = --compare-nll ]; then
    difference=$(LC_ALL=C printf '%+.5f ± %.5f' "$(field difference "$result")" "$(field difference_error "$result")")
  else
    header
  fi
  LC_ALL=C awk -v title="$title" -v ppl="$(field perplexity "$result")" -v base="$base_perplexity" -v difference="$difference" \
    -v bits="$(field bits_per_weight "$result")" -v bytes="$(field model_bytes "$result")" 'BEGIN {
      printf "| %s | %.4f | %s | %s | %.3f | %.1f |\n", title, ppl, ppl == base ? "—" : sprintf("%+.4f", ppl - base), difference, bits, bytes / 1e6
    }'
}

row "BF16" --format bf16 "$@"
row "PQ5, as published" --format pq5 --table published --no-scale-search "$@"
row "PQ5" --format pq5 "$@"
row "PQ5 as published → INT4" --through pq5 --table published --no-scale-search --format int4a "$@"
row "PQ5 → INT4" --through pq5 --format int4a "$@"
row "INT4, asymmetric" --format int4a "$@"
row "INT4, symmetric" --format int4 "$@"
