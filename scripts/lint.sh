#!/usr/bin/env bash
# clang-tidy and cppcheck over what the build compiles of src, kernels and tests; prints what they find, exit code 1 when there is anything.
# Configures build-lint/ with clang for its compile_commands.json; builds nothing. All files take about an hour on two cores.
#   lint.sh [--changed | FILE...]      all sources; --changed: those that differ from the branch main, or include a header that does
# The tools come with: scripts/install_deps.sh --lint
set -uo pipefail
cd "$(dirname "$0")/.." || exit 70
for tool in clang-tidy-14 cppcheck clang++-14; do
  command -v "$tool" >/dev/null || { echo "lint.sh: no $tool; scripts/install_deps.sh --lint installs it" >&2; exit 69; }
done
build=build-lint
if [ ! -e "$build/compile_commands.json" ] || [ CMakeLists.txt -nt "$build/compile_commands.json" ]; then
  cmake -S . -B "$build" -G Ninja -DCMAKE_C_COMPILER=clang-14 -DCMAKE_CXX_COMPILER=clang++-14 -DPQ_CUDA=OFF >&2 || exit 69
fi

changed() {
  local base header
  base=$(git merge-base HEAD main) || return
  git diff --name-only --diff-filter=d "$base" -- '*.cpp'
  git diff --name-only --diff-filter=d "$base" -- '*.h' | while read -r header; do
    git grep -l -F "\"${header#src/}\"" -- '*.cpp'
  done
}
case "${1-}" in
  --changed) mapfile -t files < <(changed | sort -u) ;;
  '') mapfile -t files < <(git ls-files 'src/*.cpp' 'kernels/*.cpp' 'tests/*.cpp') ;;
  *) files=("$@") ;;
esac
# Not in the host's build: NCCL's side of the plugin.
kept=()
for file in "${files[@]}"; do
  grep -qF "\"file\": \"$PWD/$file\"" "$build/compile_commands.json" && kept+=("$file")
done
[ ${#kept[@]} -gt 0 ] || { echo "lint.sh: nothing to look at" >&2; exit 0; }

failed=0
printf '%s\n' "${kept[@]}" | xargs -P "$(nproc)" -n 1 clang-tidy-14 -p "$build" --quiet 2>/dev/null || failed=1
# Suppressed: system headers, which cppcheck is not given; suppressions beside code that one configuration of macros does not reach. In
# kernels/cpu vector registers go by value, and rows of a cache are bytes until their type says what they hold. It takes the name of a
# designated initialiser for a read of an uninitialised variable (bench_kernels.cpp), and of an array for one of its elements (tree_sum.h).
cppcheck --std=c++20 --language=c++ --library=googletest --enable=warning,performance,portability --inline-suppr --quiet --error-exitcode=1 -j "$(nproc)" \
  --suppress=missingIncludeSystem --suppress=unmatchedSuppression --suppress='passedByValue:kernels/cpu/*' \
  --suppress='invalidPointerCast:kernels/cpu/*' --suppress=legacyUninitvar:src/eval/bench_kernels.cpp \
  --suppress=uninitvar:src/comm/tree_sum.h -I src -I . -I tests \
  --template='{file}:{line}: {severity}: {message} [{id}]' "${kept[@]}" || failed=1
exit $failed
