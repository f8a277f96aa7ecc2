#!/usr/bin/env bash
# Ends of failing jobs over two nodes: makes two hosts of this machine's network namespaces (removed at the end), runs pq-run under
# launch/pq with a rank on each, over TCP between them, breaks ranks by PQ_FAULT and compares code and line with what
# tests/failure/README.md says of several nodes. Prints that table; exit code 1 when a row differs, 77 (skipped) without root, iproute2
# or the right to make namespaces. Needs a built build/.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 70
skip() { echo "nodes_check.sh: skipped, $1" >&2; exit 77; }
[ "$(id -u)" -eq 0 ] || skip "namespaces need root"
command -v ip >/dev/null || skip "no ip; apt-get install --no-install-recommends iproute2"
[ -x build/bin/pq-run ] || { echo "nodes_check.sh: no build/bin/pq-run; scripts/build.sh makes it" >&2; exit 69; }

folder=$(mktemp -d)
a=pq$$a
b=pq$$b
# shellcheck disable=SC2317  # the trap calls it
finish() {
  for node in "$a" "$b"; do
    ip netns pids "$node" 2>/dev/null | xargs -r kill -KILL 2>/dev/null
    ip netns del "$node" 2>/dev/null
    rm -rf "/etc/netns/$node"
  done
  rmdir /etc/netns 2>/dev/null
  rm -rf "$folder"
}
trap finish EXIT
number=1
for node in "$a" "$b"; do
  ip netns add "$node" 2>"$folder/err" || skip "ip netns add: $(cat "$folder/err")"
  mkdir -p "/etc/netns/$node"
  printf '127.0.0.1 localhost\n10.77.0.1 %s\n10.77.0.2 %s\n' "$a" "$b" >"/etc/netns/$node/hosts"
done
ip link add eth0 netns "$a" type veth peer name eth0 netns "$b" || skip "no veth"
for node in "$a" "$b"; do
  ip -n "$node" addr add "10.77.0.$number/24" dev eth0
  ip -n "$node" link set lo up
  ip -n "$node" link set eth0 up
  number=$((number + 1))
done
# What mpirun starts its daemons with: HOST COMMAND...
cat >"$folder/agent" <<'AGENT'
#!/bin/sh
host=$1
shift
exec ip netns exec "$host" unshare --uts sh -c 'hostname "$0"; exec sh -c "$*"' "$host" "$@"
AGENT
chmod +x "$folder/agent"
export PQ_FAULT PQ_FAULT_MARK="$folder/mark"

failed=0
# check FAULT CODE LINE: the code of launch/pq, and that LINE, an expression, is the only one that is no news of a healthy run.
check() {
  local code start end others most=5000
  [ "$2" -ne 75 ] || most=6500
  rm -f "$folder/mark"
  PQ_FAULT=$1
  timeout 60 ip netns exec "$a" unshare --uts sh -c 'hostname "$0"; exec "$@"' "$a" \
    launch/pq -np 2 --host "$a:1,$b:1" --mca plm_rsh_agent "$folder/agent" --mca btl_tcp_if_include 10.77.0.0/24 \
    --mca oob_tcp_if_include 10.77.0.0/24 -x PQ_FAULT -x PQ_FAULT_MARK -- \
    build/bin/pq-run -m tests/data/demo -p "Once upon a time" -n 8 --temp 0 --watchdog 1.5 >"$folder/out" 2>"$folder/err"
  code=$?
  while [ -n "$(ip netns pids "$a")$(ip netns pids "$b")" ]; do sleep 0.02; done
  end=$(date +%s%3N)
  start=$end
  [ ! -e "$folder/mark" ] || start=$(date -r "$folder/mark" +%s%3N)
  # The last: mpirun's own, when it is in a hurry.
  others=$(grep -cvE '(cpu \(|loaded |prefill |rank [0-9]+: .* weights, |plm:rsh: Warning: setpgid)' "$folder/err")
  printf '| `%s` | `%s` | %d | %d ms |\n' "$1" "$(grep -E -m 1 "$3" "$folder/err")" "$code" $((end - start))
  if [ "$code" -ne "$2" ] || [ "$others" -ne 1 ] || ! grep -qE "$3" "$folder/err" || [ $((end - start)) -gt "$most" ]; then
    failed=1
    echo "nodes_check.sh: $1: code $code instead of $2, or not the one line \"$3\", or after more than $most ms:" >&2
    cat "$folder/err" >&2
  fi
}
dead='on HOST ended without a word, last heard in '
silent='no progress for 1.5 s .* on HOST; nothing is heard from its process'
check kill:load:rank=1:layer=3 137 "pq-run.0.: rank 1 ${dead/HOST/$b}"
check kill:decode:rank=1:step=3 137 "pq-run.0.: rank 1 ${dead/HOST/$b}"
check kill:decode:rank=0:step=3 137 "pq-run.1.: rank 0 ${dead/HOST/$a}"
check stop:load:rank=1:layer=3 75 "pq-run.0.: ${silent/HOST/$b}"
check stop:load:rank=0:layer=3 75 "pq-run.1.: ${silent/HOST/$a}"
check stop:decode:rank=1:step=3 75 "pq-run.0.: ${silent/HOST/$b}"
check stop:finalize:rank=1 75 "pq-run.0.: ${silent/HOST/$b}"
check hang:decode:rank=1:step=3 75 "pq-run.0.: no progress .* waits for rank 1, which is in decode, step 3 on $b"
check segv:decode:rank=1:step=3 139 "pq-run.1.: crashed with SIGSEGV in decode, step 3 on $b"
check throw:decode:rank=1 70 "pq-run.1.: internal error: PQ_FAULT asked for it in decode, step 2 on $b"
check exit:decode:rank=1:step=2 70 "pq-run.1.: exit was called in decode, step 2 on $b"
check oom:load:rank=1 69 "pq-run.0.: rank 1 on .*: out of memory in loading the weights"
exit $failed
