#!/usr/bin/env bash
# The main job on the demo model, from a bare machine: install, build, quantise on two ranks, generate, chat, measure. Everything but the
# installation goes under build/; a second run takes seconds.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/build.sh

model=tests/data/demo
store=build/demo-store

show() {
  printf '\n$ %s\n' "$*"
  "$@"
}

rm -rf "$store"
show launch/pq -np 2 pq-quantize "$model" "$store"
show build/bin/pq-run -m "$store" --plan --ranks 2
show launch/pq -np 2 pq-run -m "$store" -p "Early one morning," -n 64 --seed 1
show launch/pq -np 2 pq-run -m "$store" --chat -p "Tell me a story about a fox." -n 64 --seed 1
show launch/pq -np 2 pq-ppl -m "$store" -f "$model/eval.txt" --protocol gptq-2048 --windows 4
show scripts/quality_table.sh "$model" "$model/eval.txt" gptq-2048 2 --windows 4
