#!/usr/bin/env bash
# Drains the Ray node of this machine: its jobs save, leave and are queued again. Returns when they have left, or when the time is over.
#
#     drain_node.sh HEAD:PORT SECONDS REASON
#
# $NODE_IP: the node's address, where the machine has several; $PYTHON: that of Ray.
set -euo pipefail

address=${1:?give host:port of the Ray head} left_s=${2:?give the seconds that are left} reason=${3:?say why}
python=${PYTHON:-python3}
deadline=$((SECONDS + left_s))
node_ip=${NODE_IP:-$(hostname -i | cut -d' ' -f1)}

node_id=$("$python" - "$address" "$node_ip" <<'PYTHON'
import sys
from ray._raylet import GcsClient
nodes = GcsClient(address=sys.argv[1]).get_all_node_info().values()
print(next((node.node_id.hex() for node in nodes if node.state == 0 and node.node_manager_address == sys.argv[2]), ""))
PYTHON
)
if [ -z "$node_id" ]; then
    echo "no node of Ray at $address has the address $node_ip" >&2
    exit 1
fi
"$python" -m ray.scripts.scripts drain-node --address="$address" --node-id="$node_id" --reason=DRAIN_NODE_REASON_PREEMPTION \
    --reason-message="$reason" --deadline-remaining-seconds="$left_s"
while [ "$SECONDS" -lt "$deadline" ] && pgrep -f '^ray::Agent' >/dev/null; do sleep 1; done
