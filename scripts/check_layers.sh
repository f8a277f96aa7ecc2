#!/usr/bin/env bash
# Holds the include graph to the table of src/ARCHITECTURE.md: which room may include which, and where the headers of MPI, HDF5, JSON,
# CLI11 and CUDA may appear. Prints every violation; exit code 1 when there is one.
#   check_layers.sh [TREE]
set -euo pipefail
cd "${1:-$(dirname "$0")/..}"

# shellcheck disable=SC2016  # the program is awk's
find src kernels -type f \( -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' \) | sort | xargs -r awk '
  BEGIN {
    sees["base"]    = "base"
    sees["kernels"] = "base kernels"
    sees["comm"]    = "base comm"
    sees["text"]    = "base text"
    sees["store"]   = "base kernels store"
    sees["model"]   = "base kernels comm store model"
    sees["engine"]  = "base kernels comm text store model engine"
    sees["eval"]    = "base kernels comm text store model engine eval"
    sees["serve"]   = "base kernels comm text store model engine serve"
    sees["app"]     = "base kernels comm text store model engine eval serve app"
    # A header of another room that a room may see beyond its layer.
    beyond["store comm/communicator.h"] = 1
    beyond["comm kernels/backend.h"] = 1
    beyond["comm kernels/device_sum.h"] = 1
    # The plugin is kernels/cuda and this one.
    beyond["kernels comm/nccl_comm.h"] = 1
    # Third-party headers: a pattern, and the pattern of the files that may include them.
    outside["^mpi\\.h$"]                  = "^src/comm/"
    outside["^hdf5"]                      = "^src/(store/shard_store|eval/logits_file)[a-z_]*\\.cpp$"
    outside["^nlohmann/json_fwd"]         = "^src/(base/strict_json|store/|text/|eval/|serve/|app/)"
    outside["^nlohmann/json\\.hpp"]       = "^src/(store|text|eval|serve|app)/.*\\.cpp$|^src/(base/strict_json|model/config|engine/generation_config)\\.cpp$"
    outside["^CLI/"]                      = "^src/app/.*\\.cpp$"
    outside["^(cuda|cublas|nccl)"]        = "^kernels/cuda/|^src/comm/nccl_(comm\\.cpp|library\\.(h|cpp))$"
    outside["^(ranges|format|expected|source_location)$"] = "^$"
  }
  function report(why) {
    printf "%s:%d: %s\n", FILENAME, FNR, why
    violations++
  }
  FNR == 1 {
    split(FILENAME, part, "/")
    room = part[1] == "kernels" ? "kernels" : part[2]
    if (!(room in sees)) report("room \"" room "\" is not in the table of scripts/check_layers.sh")
  }
  /^[ \t]*#[ \t]*include[ \t]*"/ {
    header = $0
    sub(/^[^"]*"/, "", header)
    sub(/".*$/, "", header)
    target = header
    sub(/\/.*$/, "", target)
    if (header !~ /\//) report("\"" header "\" must name its room, as in \"base/error.h\"")
    else if (!(target in sees)) report("\"" header "\" is in no room")
    else if (index(" " sees[room] " ", " " target " ") == 0 && !((room " " header) in beyond))
      report("room " room " may not include \"" header "\"")
  }
  /^[ \t]*#[ \t]*include[ \t]*</ {
    header = $0
    sub(/^[^<]*</, "", header)
    sub(/>.*$/, "", header)
    for (pattern in outside)
      if (header ~ pattern && FILENAME !~ outside[pattern]) report("<" header "> may not be included here")
  }
  END {
    if (violations) { printf "%d violations of the layers\n", violations; exit 1 }
    print "layers hold"
  }
'
