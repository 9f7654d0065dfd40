#!/usr/bin/env bash
# Any program of this project on nodes of a Slurm cluster, one process per GPU:
#
#   sbatch --nodes 4 scripts/slurm.sh train_titok.py config=configs/titok/imagenet_bl64_vq8k.yaml
#   sbatch --nodes 1 --gpus-per-node 4 scripts/slurm.sh sample_imagenet.py generator=rar-xl output=runs/samples
#   DRY_RUN=1 bash scripts/slurm.sh train_titok.py config=...      print the command and stop
#
# Submit from the repository, with the environment active. Options of sbatch come before the script: --time,
# --partition, --account, --gpus-per-node, ... What comes after it goes to the program.
#
# Five minutes before the time limit, and when the job is preempted, the training processes get SIGTERM: they save and
# stop, and the job goes back into the queue under its own number, to go on from that checkpoint.
#SBATCH --job-name=image-tokens
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --requeue
#SBATCH --signal=B:TERM@300
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out
set -euo pipefail

cd "${SLURM_SUBMIT_DIR:-$PWD}" # Slurm runs a copy of this file, so its own place says nothing
if (($# == 0)) || [ ! -f "$1" ]; then
    echo "error: '${1:-}' is no program below $PWD; use: sbatch --nodes 4 scripts/slurm.sh train_titok.py config=FILE" >&2
    exit 1
fi

# Runs on every node: torchrun, with 143 as exit code if somebody asked to stop.
on_node() {
    local host="$1" port="$2" code=0 waited=0 stopped=false
    trap 'stopped=true' TERM
    # The first node holds the rendezvous. torchrun gives up after a minute; a node may take longer to start.
    while [ "${SLURM_NODEID:-0}" != 0 ] && ! timeout 5 bash -c "exec 3<> /dev/tcp/$host/$port" 2> /dev/null; do
        if $stopped; then exit 143; fi
        if ((waited == 600)); then
            echo "error: $HOSTNAME waited $waited s for port $port of $host; did the program start there?" >&2
            exit 1
        fi
        sleep 1
        if ((++waited % 60 == 0)); then echo "$HOSTNAME waits for port $port of $host" >&2; fi
    done
    torchrun "${@:3}" &
    until wait $!; do
        code=$?
        kill -0 $! 2>/dev/null || break # else it was the signal that ended the waiting
        code=0
    done
    if $stopped; then code=143; fi
    exit "$code"
}
# How long torchrun waits for processes that are to stop; 30 seconds, always, with releases that do not know this.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-270}"

NODES="${SLURM_JOB_NUM_NODES:-1}"
GPUS="${SLURM_GPUS_PER_NODE:-8}" # may carry a type: a100:4
JOB="${SLURM_JOB_ID:-0}"
hosts=(localhost)
if [ -n "${SLURM_JOB_NODELIST:-}" ]; then
    mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
fi
host="${hosts[0]}" port=$((20000 + JOB % 20000))
while timeout 5 bash -c "exec 3<> /dev/tcp/$host/$port" 2> /dev/null; do
    port=$((port + 1)) # somebody listens there
done
arguments=(
    --nnodes "$NODES" --nproc_per_node "${GPUS##*:}"
    --rdzv_backend c10d --rdzv_id "$JOB" --rdzv_endpoint "$host:$port"
    "$@"
)
# A single task per node, and all of its CPUs: the processes of torchrun share them. A node that fails ends the others.
step=(srun --nodes "$NODES" --ntasks-per-node 1 --cpu-bind none --kill-on-bad-exit=1)

if [ -n "${DRY_RUN:-}" ]; then
    echo "${step[*]} torchrun $(printf '%q ' "${arguments[@]}")"
    exit 0
fi

stopping=false
forward() {
    stopping=true
    scancel --signal=TERM "$JOB" # all steps, and not this shell
}
trap forward TERM
code=0
"${step[@]}" bash -c "$(declare -f on_node); on_node \"\$@\"" on_node "$host" "$port" "${arguments[@]}" &
until wait $!; do
    code=$?
    kill -0 $! 2>/dev/null || break
    code=0
done

# A job that was cancelled is not RUNNING any more, and must not come back.
if { $stopping || ((code == 143)); } && [ "$(squeue --noheader --job "$JOB" --format %T)" = RUNNING ]; then
    echo "stopped; job $JOB goes back into the queue"
    scontrol requeue "$JOB"
fi
exit "$code"
