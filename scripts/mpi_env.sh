# Sourced by the scripts that start ranks: what mpirun needs on a small machine. A cluster's own settings stay as they are.
# shellcheck shell=bash

# Open MPI refuses root unless told twice, and more ranks than cores unless told once.
if [ "$(id -u)" -eq 0 ]; then
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi
if [ -z "${SLURM_JOB_ID:-}" ]; then
  export OMPI_MCA_rmaps_base_oversubscribe="${OMPI_MCA_rmaps_base_oversubscribe:-1}"
fi

# ranks N PROGRAM ARGUMENTS...
ranks() {
  local count=$1
  shift
  mpirun --quiet -np "$count" "$@"
}
