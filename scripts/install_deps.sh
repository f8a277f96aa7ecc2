#!/usr/bin/env bash
# Installs the Debian packages pq is built from: only those that are missing, as root or through sudo, without questions.
#   install_deps.sh [--lint]      --lint: what scripts/lint.sh and scripts/fuzz.sh need as well
set -euo pipefail

packages=(g++ cmake ninja-build pkg-config git ca-certificates libopenmpi-dev openmpi-bin libhdf5-dev libgtest-dev libgmock-dev
  nlohmann-json3-dev libcli11-dev libfmt-dev libpcre2-dev libutf8proc-dev libxxhash-dev libssl-dev)
[ "${1-}" != --lint ] || packages+=(clang-14 clang-tidy-14 libclang-rt-14-dev cppcheck)

if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
  echo "install_deps.sh: no apt-get here; pq needs what Debian calls: ${packages[*]}" >&2
  exit 0
fi

missing=()
for package in "${packages[@]}"; do
  status=$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null || true)
  [ "$status" = "install ok installed" ] || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  if ! command -v sudo >/dev/null; then
    echo "install_deps.sh: neither root nor sudo; ask for these packages: ${missing[*]}" >&2
    exit 69
  fi
  as_root=(sudo)
fi

echo "installing: ${missing[*]}" >&2
log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 "$@" >"$log" 2>&1; }
if ! apt update || ! apt install --yes --no-install-recommends "${missing[@]}"; then
  cat "$log" >&2
  echo "install_deps.sh: apt-get failed" >&2
  exit 69
fi
