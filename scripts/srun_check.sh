#!/usr/bin/env bash
# Exit codes and ends of failing jobs under srun: starts a SLURM of one box in a temporary directory (no init system, no munge, loopback
# only; needs root and the Debian packages slurm-wlm and a built build/), breaks ranks by PQ_FAULT and compares the code of srun with the
# table of tests/failure/README.md. Prints that table; exit code 1 when a row differs, 77 (skipped) without SLURM or without root.
#   srun_check.sh [NODES]      ranks on one node [1], or on 2 that SLURM takes for two machines
set -uo pipefail
cd "$(dirname "$0")/.." || exit 70
nodes=${1:-1}
case "$nodes" in 1 | 2) ;; *) echo "srun_check.sh: $nodes nodes? 1 or 2" >&2; exit 64 ;; esac
for tool in slurmctld slurmd srun sinfo; do
  command -v "$tool" >/dev/null || { echo "srun_check.sh: skipped, no $tool; apt-get install --no-install-recommends slurm-wlm" >&2; exit 77; }
done
[ "$(id -u)" -eq 0 ] || { echo "srun_check.sh: skipped, slurmd needs root" >&2; exit 77; }
[ -x build/bin/pq-run ] || { echo "srun_check.sh: no build/bin/pq-run; scripts/build.sh makes it" >&2; exit 69; }

folder=$(mktemp -d)
started=()
# shellcheck disable=SC2317  # the trap calls it
finish() {
  for process in "${started[@]}"; do kill "$process" 2>/dev/null; done
  wait 2>/dev/null
  rm -rf "$folder"
}
trap finish EXIT
host=$(hostname -s)
port=$((20000 + $$ % 10000 * 4))
names=()
for ((i = 1; i <= nodes; ++i)); do names+=("check$i"); mkdir -p "$folder/spool.check$i" "$folder/tmp.check$i"; done
mkdir "$folder/state"
cat >"$folder/slurm.conf" <<CONF
ClusterName=check
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
SlurmctldPort=$port
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool.%n
TmpFS=$folder/tmp.%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MpiDefault=pmix
ReturnToService=2
EnforcePartLimits=ALL
KillWait=5
PartitionName=check Nodes=ALL Default=YES State=UP
CONF
for ((i = 1; i <= nodes; ++i)); do
  echo "NodeName=check$i NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + i)) CPUs=$(nproc) Sockets=1 CoresPerSocket=$(nproc)" \
    "ThreadsPerCore=1 RealMemory=1000 State=UNKNOWN" >>"$folder/slurm.conf"
done
export SLURM_CONF=$folder/slurm.conf
slurmctld -D -c >"$folder/slurmctld.out" 2>&1 & started+=($!)
for name in "${names[@]}"; do slurmd -D -N "$name" >"$folder/slurmd.$name.out" 2>&1 & started+=($!); done
idle() { [ "$(sinfo -h -o '%T %D' 2>/dev/null)" = "idle $nodes" ]; }
for _ in $(seq 200); do
  idle && break
  sleep 0.1
done
idle || { tail -n 5 "$folder"/*.out >&2; echo "srun_check.sh: SLURM does not start" >&2; exit 69; }

failed=0
# check FAULT CODE LINE: both ways to end a job, the code of srun, and that one line of pq says why ("": none is left to).
check() {
  local flag code start words
  for flag in "" --kill-on-bad-exit=1; do
    start=$(date +%s%3N)
    # shellcheck disable=SC2086  # no flag is no word
    PQ_FAULT=$1 timeout 60 srun -N "$nodes" -n 2 --overcommit --mpi=pmix $flag build/bin/pq-run -m tests/data/demo -p "Once upon a time" -n 8 --temp 0 \
      --watchdog 1.5 >"$folder/out" 2>"$folder/err"
    code=$?
    words=$(grep -c "^pq-run.*$3" "$folder/err")
    printf '| `%s` | %s | %d | %d ms |\n' "${1:-none}" "${flag:-none}" "$code" $(($(date +%s%3N) - start))
    if [ "$code" -ne "$2" ] || { [ -n "$3" ] && [ "$words" -ne 1 ]; }; then
      failed=1
      echo "srun_check.sh: $1 $flag: code $code instead of $2, $words lines with \"$3\":" >&2
      cat "$folder/err" >&2
    fi
  done
}
echo "| fault | flag | code | time |"
echo "|---|---|---|---|"
check "" 0 ""
# Of another node a rank knows what was last said.
died() { echo "rank $1 on .* ended without a word$([ "$nodes" -eq 1 ] && echo " in $2" || echo ", last heard in")"; }
check kill:load:rank=1 137 "$(died 1 load)"
check kill:decode:rank=1:step=3 137 "$(died 1 decode)"
check kill:decode:rank=0:step=3 137 "$(died 0 decode)"
check kill:decode 137 ""
check stop:decode:rank=1:step=3 75 "no progress for 1.5 s in all_reduce of decode"
check stop:finalize:rank=0 75 "no progress for 1.5 s in finalize"
check stop:finalize:rank=1 75 "no progress for 1.5 s in finalize"
check segv:decode:rank=1:step=3 139 "crashed with SIGSEGV in decode"
check throw:decode:rank=1 70 "internal error"
check oom:load:rank=1 69 "out of memory"
check term:decode:rank=1:step=3 143 "stopped at an interruption"
exit $failed
