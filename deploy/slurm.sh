#!/usr/bin/env bash
# A search on the nodes of one SLURM job: sbatch deploy/slurm.sh search=stmem_ptbxl data.root=DIR
# `ray symmetric-run` starts Ray on every node, the search on the first, and stops Ray in the end. It takes whole nodes:
# its `ray stop` ends every Ray of the user there. docs/clusters/slurm.md says more. Change what is marked CHANGE.
#SBATCH --job-name=heartsweep
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=1
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

# CHANGE: the checkout, with its .venv, on a file system that every node sees
cd "${HEARTSWEEP:-$HOME/heartsweep}"
source .venv/bin/activate

# every node reads the token from the shared home; without one, nothing starts
export RAY_AUTH_MODE=token
token=${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}
if [[ ! -s $token ]]; then
  echo "no token in $token: make one with  (umask 077; mkdir -p ~/.ray; openssl rand -hex 32 > ~/.ray/auth_token)" >&2
  exit 2
fi
chmod 600 "$token"

head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | awk 'NR == 1')
# an address, not a name: nodes often know their own name as 127.0.1.1
head_ip=$(srun --nodes=1 --ntasks=1 --nodelist="$head_node" hostname --ip-address | awk 'NR == 1 {print $1}')
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300

# The search ends by itself 5 minutes before SLURM ends the job: it saves, and goes on when the job runs again.
left=$((${SLURM_JOB_END_TIME:-$(($(date +%s) + 43200))} - $(date +%s) - 300))
if ((left < 60)); then
  echo "less than 6 minutes are left of this job: give it more --time" >&2
  exit 2
fi
code=0
srun --export=ALL --cpus-per-task="$SLURM_CPUS_PER_TASK" ray symmetric-run \
  --address "$head_ip:6379" --min-nodes "$SLURM_JOB_NUM_NODES" \
  --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" --disable-usage-stats \
  -- timeout --signal=TERM --kill-after=120 "$left" \
  python launch.py "$@" cluster=ray cluster.address=auto || code=$?

if ((code == 124)); then # time was up, the search was not
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
