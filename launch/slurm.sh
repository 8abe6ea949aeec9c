#!/usr/bin/env bash
#SBATCH --job-name=mosaics_jax
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --output=slurm-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@300

# Runs a command on all nodes of a Slurm job, and requeues the job when it is preempted or out of time.
#
#   sbatch --nodes=2 --gpus-per-node=8 --time=24:00:00 launch/slurm.sh python -m experiments.babistories FLAGS
#   bash launch/slurm.sh --dry_run python -m experiments.babistories FLAGS    # prints what the job would run
#
# One process on each node uses all its GPUs; --ntasks-per-node equal to --gpus-per-node makes it one process a GPU.
# The command gets SIGTERM on preemption, and 300 seconds before the time is up (--signal above). It saves and exits
# with 75, upon which the job is requeued. Any other status is final.
set -uo pipefail

dry_run=
if [ "${1-}" = --dry_run ]; then
  dry_run=yes
  shift
fi
if [ $# = 0 ]; then
  echo "error: no command to run: end with python -m experiments.NAME FLAGS" >&2
  exit 2
fi
if [ -z "$dry_run" ] && [ -z "${SLURM_JOB_ID-}" ]; then
  echo "error: this is a batch script: start it with sbatch launch/slurm.sh, or add --dry_run" >&2
  exit 2
fi

# JAX finds the other processes by itself. --wait: when a process has ended, the others are killed after so many
# seconds; --kill-on-bad-exit would also kill processes that are about to exit with 75.
command=(srun --wait=60 "$@" --distributed)
gpus=${SLURM_GPUS_ON_NODE-0}
if [ "$gpus" -gt 1 ] && [ "${SLURM_NTASKS_PER_NODE-1}" = 1 ]; then
  # Under Slurm, JAX gives a process one GPU unless told otherwise.
  command=(env "JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((gpus - 1)))" "${command[@]}")
fi
if [ -n "$dry_run" ]; then
  line=$(printf '%q ' "${command[@]}")
  echo "${line% }"
  exit
fi

trap : TERM # otherwise a signal to the whole job would end this shell before the command has saved
"${command[@]}"
status=$?
# A job that was cancelled is not RUNNING any more, and must not be requeued.
if [ "$status" = 75 ] && [ "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)" = RUNNING ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
