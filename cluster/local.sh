#!/usr/bin/env bash
# A Ray cluster of several nodes on this machine, to try what a job does on a real one.
#
#     cluster/local.sh [NODES=2] [CPUS of each=2] [PORT=6399] [GPUS of each=0, pretended]
#
# Prints the address when all nodes are there, and runs until Ctrl-C or SIGTERM; then it ends what it started, by pid. Every node has its
# own folder and ports, so that it disturbs no other Ray on this machine.
set -euo pipefail

nodes=${1:-2} cpus=${2:-2} port=${3:-6399} gpus=${4:-0}
python=${PYTHON:-$(dirname "$0")/../.venv/bin/python}
folder=$(mktemp -d /tmp/orc-XXXXXX)
pids=()

stop() {
    trap - EXIT INT TERM
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
    rm -rf "$folder"
}
trap stop EXIT
trap 'exit 0' INT TERM

# Ray's token, where a controller looks for it: who has it may run code on these nodes
if [ -z "${RAY_AUTH_MODE:-}" ]; then
    export RAY_AUTH_MODE=token
    if [ ! -s "$HOME/.ray/auth_token" ]; then
        export RAY_AUTH_TOKEN_PATH="${ORCHESTRATOR_HOME:-$HOME/.orchestrator}/token"
        if [ ! -s "$RAY_AUTH_TOKEN_PATH" ]; then
            (umask 077 && mkdir -p "$(dirname "$RAY_AUTH_TOKEN_PATH")" \
                && "$python" -c 'import secrets; print(secrets.token_hex(32), end="")' >"$RAY_AUTH_TOKEN_PATH")
        fi
    fi
fi

start_node() { # name, further arguments of `ray start`
    local name=$1
    shift
    env -u RAY_ADDRESS RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0 "$python" -m ray.scripts.scripts start --block --num-cpus="$cpus" --num-gpus="$gpus" --object-store-memory=80000000 --node-ip-address=127.0.0.1 \
        --min-worker-port=0 --max-worker-port=0 --dashboard-agent-listen-port=0 --labels="host=$name" --disable-usage-stats "$@" \
        >"$folder/$name.log" 2>&1 &
    pids+=($!)
}

living_nodes() {
    "$python" - "127.0.0.1:$port" <<'PYTHON'
import sys
from ray._raylet import GcsClient
print(sum(node.state == 0 for node in GcsClient(address=sys.argv[1]).get_all_node_info().values()))
PYTHON
}

wait_for() { # number of nodes
    for _ in $(seq 120); do
        for pid in "${pids[@]}"; do
            kill -0 "$pid" 2>/dev/null || { echo "a node did not start:" >&2; tail -n 20 "$folder"/*.log >&2; exit 1; }
        done
        if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && [ "$(living_nodes 2>/dev/null)" = "$1" ]; then return; fi
        sleep 0.5
    done
    echo "$1 nodes were not there within a minute:" >&2
    tail -n 20 "$folder"/*.log >&2
    exit 1
}

start_node head --head --port="$port" --temp-dir="$folder/head" --include-dashboard=false --no-monitor
wait_for 1
for number in $(seq 2 "$nodes"); do
    start_node "node$number" --address="127.0.0.1:$port" --temp-dir="$folder/node$number"
    wait_for "$number"
done
echo "ready: $nodes nodes of $cpus CPUs and $gpus GPUs at 127.0.0.1:$port (Ctrl-C ends them)"
echo "  orchestrator train cluster.address=127.0.0.1:$port resources.max_workers_per_node=1"
wait
