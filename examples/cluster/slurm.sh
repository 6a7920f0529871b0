#!/bin/bash
# A search on two machines of eight GPUs: sbatch examples/cluster/slurm.sh
# The checkout, its .venv and SAFEMAX_CACHE are on a disk that all machines share. After a time-out the same job resumes.
#SBATCH --job-name=safemax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --gpus-per-node=8
#SBATCH --time=04:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append

set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"
. .venv/bin/activate
export SAFEMAX_CACHE="${SAFEMAX_CACHE:-$PWD/.safemax}"                # shared
export MLFLOW_TRACKING_URI="${MLFLOW_TRACKING_URI:-sqlite:///$PWD/mlflow.db}" # only the first machine writes
export RAY_USAGE_STATS_ENABLED=0
ray get-auth-token --generate > /dev/null                              # one for all machines, in the shared home

# A port of this job's own, should an earlier one still be ending.
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 20000))

# On every machine: start Ray; on the first one, when all have joined: run the search; then stop Ray everywhere.
srun --kill-on-bad-exit=1 ray symmetric-run --address="$head:$port" --min-nodes="$SLURM_NNODES" \
    -- python -m hpo.search --method=safemax --data=cifar10 --forget=3 --trials=160 --workers=16 --cluster=auto "$@" &
srun_pid=$!
# SLURM's warning, two minutes before the end, becomes the search's: its workers write checkpoints, and the job comes back.
trap 'kill -TERM "$srun_pid"; wait "$srun_pid"; scontrol requeue "$SLURM_JOB_ID"' TERM
wait "$srun_pid"
