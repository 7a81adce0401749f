#!/usr/bin/env bash
#SBATCH --job-name=orchestrator
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --signal=B:USR1@180
# A Ray cluster over a Slurm allocation: one node of Ray on each of its nodes, the head on the first, and a command beside the head.
#
#     sbatch --nodes=4 --gpus-per-node=8 cluster/slurm.sh                                   # serves until the time is over
#     sbatch --nodes=4 --gpus-per-node=8 cluster/slurm.sh train workload=gpt resources.num_workers=32 resources.gpus_per_worker=1
#     sbatch --nodes=4 --gpus-per-node=8 cluster/slurm.sh resume JOB                        # goes on with it, and follows it to its end
#
# Arguments are those of `orchestrator`; `cluster.address=...` is added where they start a job. $ORCHESTRATOR_HOME must be a folder that the
# head's node sees in every allocation (a shared file system): queue and jobs stay there, and the next allocation goes on with them.
# Three minutes before the time is over (`--signal`) every node is drained: jobs save, leave, and are queued again.
# shellcheck disable=SC2329  # some functions are called by traps
set -euo pipefail

python=${PYTHON:-python3}
export ORCHESTRATOR_HOME=${ORCHESTRATOR_HOME:-$HOME/.orchestrator}
export RAY_USAGE_STATS_ENABLED=0 RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0
port=${RAY_PORT:-$((20000 + SLURM_JOB_ID % 10000))}
cpus=${SLURM_CPUS_ON_NODE:?run this by sbatch} gpus=${SLURM_GPUS_ON_NODE:-0}
notice_s=${NOTICE_S:-150} # of the 180 of --signal
store_bytes=${OBJECT_STORE_BYTES:-1000000000} # of Ray's own: the node's shared memory is for snapshots of ranks
steps=() nodes=()
command_pid=""

stop() {
    trap - EXIT INT TERM USR1
    set +e
    if [ -n "$command_pid" ]; then
        kill "$command_pid" 2>/dev/null
        wait "$command_pid" 2>/dev/null
    fi
    orchestrator down >&2 # the controller, if a job started it; jobs stay in the queue
    for ((i = ${#steps[@]} - 1; i >= 0; i--)); do kill "${steps[i]}" 2>/dev/null; done
    for pid in "${steps[@]}"; do wait "$pid" 2>/dev/null; done
    for i in "${!nodes[@]}"; do on_node "${nodes[i]}" rm -rf "/tmp/orc-$SLURM_JOB_ID-$i" & done
    wait
}
trap stop EXIT
trap 'exit 143' INT TERM

orchestrator() { "$python" -m orchestrator.cli "$@"; }

on_node() { # node, command; only in the background or in a pipe, where the shell that becomes srun is one of its own
    local node=$1
    shift
    exec srun --overlap --nodes=1 --ntasks=1 --nodelist="$node" "$@"
}

start_node() { # number, node, further arguments of `ray start`; a folder of its own, with a short name for the sockets
    local number=$1 node=$2
    shift 2
    on_node "$node" "$python" -m ray.scripts.scripts start --block --num-cpus="$cpus" --num-gpus="$gpus" \
        --node-ip-address="$(address_of "$node")" --temp-dir="/tmp/orc-$SLURM_JOB_ID-$number" --labels="host=$node" \
        --object-store-memory="$store_bytes" --min-worker-port=0 --max-worker-port=0 --dashboard-agent-listen-port=0 --disable-usage-stats "$@" &
    steps+=($!)
}

address_of() { # node
    on_node "$1" hostname --ip-address | cut -d' ' -f1
}

living_nodes() { # ids, one a line
    "$python" - "$address" <<'PYTHON'
import sys
from ray._raylet import GcsClient
print(*(node.node_id.hex() for node in GcsClient(address=sys.argv[1]).get_all_node_info().values() if node.state == 0), sep="\n")
PYTHON
}

wait_for() { # number of nodes
    for _ in $(seq 300); do
        for pid in "${steps[@]}"; do
            kill -0 "$pid" 2>/dev/null || { echo "a node of Ray did not start" >&2; exit 1; }
        done
        if (exec 3<>"/dev/tcp/${address%:*}/$port") 2>/dev/null && [ "$(living_nodes 2>/dev/null | wc -l)" -ge "$1" ]; then return; fi
        sleep 1
    done
    echo "$1 nodes of Ray were not there within five minutes" >&2
    exit 1
}

drain() { # what is left of the allocation is used to save
    trap '' USR1
    echo "the allocation ends: $notice_s s to save and leave" >&2
    for node_id in $(living_nodes); do
        "$python" -m ray.scripts.scripts drain-node --address="$address" --node-id="$node_id" --reason=DRAIN_NODE_REASON_PREEMPTION \
            --reason-message="the Slurm allocation ends" --deadline-remaining-seconds="$notice_s" || true
    done
}
trap drain USR1

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
address="$(address_of "${nodes[0]}"):$port"

# Ray's token: who has it may run code on these nodes
mkdir -p "$ORCHESTRATOR_HOME"
if [ ! -s "$ORCHESTRATOR_HOME/token" ]; then
    (umask 077 && "$python" -c 'import secrets; print(secrets.token_hex(32), end="")' >"$ORCHESTRATOR_HOME/token")
fi
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$ORCHESTRATOR_HOME/token"

start_node 0 "${nodes[0]}" --head --port="$port" --include-dashboard=false --no-monitor
wait_for 1
for number in $(seq 1 $((${#nodes[@]} - 1))); do
    start_node "$number" "${nodes[number]}" --address="$address"
done
wait_for "${#nodes[@]}"
echo "ready: ${#nodes[@]} nodes of $cpus CPUs and $gpus GPUs at $address"

export RAY_ADDRESS="$address"
case "${1:-serve}" in
    serve) set -- serve --address "$address" "${@:2}" ;;
    train | submit | resume) set -- "$@" "cluster.address=$address" ;;
esac
on_node "${nodes[0]}" "$python" -m orchestrator.cli "$@" &
command_pid=$!
while true; do # a signal ends a wait early
    wait "$command_pid" && status=0 || status=$?
    kill -0 "$command_pid" 2>/dev/null || break
done
command_pid=""
exit "$status"
