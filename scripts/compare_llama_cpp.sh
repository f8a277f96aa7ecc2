#!/usr/bin/env bash
# Runs llama-bench (of llama.cpp or ik_llama.cpp) and pq-bench in turn on the same geometry and machine, and prints the ratios of their
# speeds pair by pair, with the medians, as Markdown.
#   compare_llama_cpp.sh [FLAGS] LLAMA_BENCH TYPE...
# LLAMA_BENCH is the program; llama-quantize stands beside it. TYPE is what llama-quantize calls a format: Q5_K, Q4_0, IQ5_KS ...
#   -g NAME   geometry [qwen3.5-27b]        -p N  tokens of a prefill [512]
#   -l N      layers [4]                    -n N  decoded tokens [32]
#   -v N      vocabulary [2048]             -r N  pairs [5]
#   -f NAME   format of pq-bench [pq5]      -N N  ranks of pq-bench [2]
#   -t N      threads of llama-bench [2]    -x "FLAGS"  more flags of llama-bench
#   -y "FLAGS"  more flags of pq-bench      -c DIR  where GGUF files are kept [~/.cache/pq/gguf]
# Weights are random. Every tensor that may be quantised has the type (llama-quantize --pure). Who runs first alternates. Try what is
# best for the peer, as -x "-mmp 0", "-rtr 1" or "-lm none": weights read through a memory map lie in small pages. PYTHON names a
# Python that has the packages gguf and numpy [python3].
set -euo pipefail

usage() {
  sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2
  exit 64
}

geometry=qwen3.5-27b layers=4 vocab=2048 format=pq5 threads=2 prompt=512 steps=32 pairs=5 ranks=2
cache=${XDG_CACHE_HOME:-$HOME/.cache}/pq/gguf
peer_flags=() pq_flags=()
while getopts "g:l:v:f:t:p:n:r:N:x:y:c:" flag; do
  case "$flag" in
    g) geometry=$OPTARG ;;
    l) layers=$OPTARG ;;
    v) vocab=$OPTARG ;;
    f) format=$OPTARG ;;
    t) threads=$OPTARG ;;
    p) prompt=$OPTARG ;;
    n) steps=$OPTARG ;;
    r) pairs=$OPTARG ;;
    N) ranks=$OPTARG ;;
    x) read -ra peer_flags <<<"$OPTARG" ;;
    y) read -ra pq_flags <<<"$OPTARG" ;;
    c) cache=$OPTARG ;;
    *) usage ;;
  esac
done
shift $((OPTIND - 1))
[ $# -ge 2 ] || usage
peer=$1
shift
quantize=$(dirname "$peer")/llama-quantize
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
for program in "$peer" "$quantize" "$root/build/bin/pq-bench"; do
  [ -x "$program" ] || { echo "$program: no such program" >&2; exit 69; }
done

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The F16 file is common; types of the same name need not be the same bytes in two runtimes.
mkdir -p "$cache"
base=$cache/$geometry-${layers}l-${vocab}v
gguf_of() {
  local out
  out=$base.$1.$(cksum <<<"$quantize" | cut -d' ' -f1).gguf
  if [ ! -s "$base.f16.gguf" ]; then
    "$python" "$root/scripts/make_gguf.py" "$base.f16.tmp" --geometry "$geometry" --layers "$layers" --vocab "$vocab" >&2
    mv "$base.f16.tmp" "$base.f16.gguf"
  fi
  if [ ! -s "$out" ]; then
    "$quantize" --pure "$base.f16.gguf" "$out.tmp" "$1" "$threads" >"$work/quantize.log" 2>&1 ||
      { tail -5 "$work/quantize.log" >&2; exit 69; }
    mv "$out.tmp" "$out"
  fi
  echo "$out"
}

run_peer() {  # FILE PAIR
  "$peer" -m "$1" -t "$threads" -p "$prompt" -n "$steps" -r 1 "${peer_flags[@]}" -o json >"$work/$2.peer.json" 2>"$work/peer.log" ||
    { tail -5 "$work/peer.log" >&2; exit 69; }
}

# The first repetition of a prefill warms up, as llama-bench does.
run_pq() {  # PAIR
  pq_bench "$work/$1.decode.json" decode -n "$steps"
  pq_bench "$work/$1.prefill.json" prefill -p "$prompt" -r 2
}

pq_bench() {  # REPORT FLAGS...
  local report=$1
  shift
  "$root/launch/pq" -np "$ranks" pq-bench "$@" --geometry "$geometry" --layers "$layers" --vocab "$vocab" --format "$format" --json \
    "${pq_flags[@]}" >"$report" 2>"$work/pq.log" || { tail -5 "$work/pq.log" >&2; exit 69; }
}

echo "$geometry, $layers layers, vocabulary $vocab; decode of $steps tokens, prefill of $prompt. Peer: $peer ${peer_flags[*]} with $threads"
echo "threads, types by llama-quantize --pure. pq: $ranks ranks, pq-bench ${pq_flags[*]}. Ratio: pq over peer."
echo
echo "| type | bits | pq bits | what | pair | peer tok/s | pq tok/s | ratio |"
echo "|---|---|---|---|---|---|---|---|"
for type in "$@"; do
  file=$(gguf_of "$type")
  for ((pair = 1; pair <= pairs; ++pair)); do
    if ((pair % 2)); then
      run_peer "$file" "$pair"
      run_pq "$pair"
    else
      run_pq "$pair"
      run_peer "$file" "$pair"
    fi
  done
  "$python" - "$work" "$pairs" "$type" <<'PYTHON'
import json, statistics, sys

work, pairs, kind = sys.argv[1], int(sys.argv[2]), sys.argv[3]
rates = {"decode": [], "prefill": []}
for pair in range(1, pairs + 1):
    text = open(f"{work}/{pair}.peer.json").read()
    peer = json.loads(text[text.index("[") :])
    for what, rows in rates.items():
        report = json.load(open(f"{work}/{pair}.{what}.json"))
        theirs = next(test for test in peer if (test["n_gen"] if what == "decode" else test["n_prompt"]) > 0)
        if theirs["model_n_params"] != report["weights"]:
            sys.exit(f"the peer's model has {theirs['model_n_params']} weights, pq-bench's {report['weights']}")
        row = report["rows"][0]
        seconds = row["seconds"] if what == "decode" else row["seconds"][1:]
        # The mean over all tokens, as llama-bench reports it.
        rows.append((theirs["avg_ts"], row["tokens"] * len(seconds) / sum(seconds)))
bits = 8 * theirs["model_size"] / theirs["model_n_params"]
ours = 8 * report["weight_bytes"] / report["weights"]
for what, rows in rates.items():
    head = f"| {kind} | {bits:.3f} | {ours:.3f} | {what} |"
    for pair, (a, b) in enumerate(rows, 1):
        print(f"{head} {pair} | {a:.2f} | {b:.2f} | {b / a:.3f} |")
    a, b, ratio = (statistics.median(x) for x in (*zip(*rows), [b / a for a, b in rows]))
    print(f"{head} **median** | **{a:.2f}** | **{b:.2f}** | **{ratio:.3f}** |")
PYTHON
done
