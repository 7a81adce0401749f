#!/usr/bin/env bash
# Drains the Ray node of this machine: its jobs save, leave and are queued again. Returns when they have left, or when the time is over.
#
#     drain_node.sh HEAD:PORT SECONDS REASON
#
# $NODE_IP: the node's address, where Ray does not find it by itself; $PYTHON: that of Ray.
set -euo pipefail

exec "${PYTHON:-python3}" - "${1:?give host:port of the Ray head}" "${2:?give the seconds that are left}" "${3:?say why}" <<'PYTHON'
import os
import sys
import time

from ray._private.services import get_node_ip_address
from ray._private.state import GlobalState
from ray._raylet import GcsClient, GcsClientOptions

PREEMPTION = 2  # of Ray's reasons for a drain
address, left_s, reason = sys.argv[1], float(sys.argv[2]), sys.argv[3]
deadline = time.time() + left_s
node_ip = os.environ.get("NODE_IP") or get_node_ip_address()
client = GcsClient(address=address)
nodes = [info.node_id.hex() for info in client.get_all_node_info().values() if info.state == 0 and info.node_manager_address == node_ip]
if not nodes:
    sys.exit(f"no node of Ray at {address} has the address {node_ip}")
for node in nodes:
    accepted, why = client.drain_node(node, PREEMPTION, reason, int(deadline * 1000))
    if not accepted:
        sys.exit(f"Ray does not drain node {node}: {why}")
    print(f"node {node} drains: {reason}", flush=True)

state = GlobalState()
state._initialize_global_state(GcsClientOptions.create(address, None, allow_cluster_id_nil=True, fetch_cluster_id_if_nil=True))
while time.time() < deadline and any(actor["Address"]["NodeID"] in nodes for actor in state.actor_table(None, None, "ALIVE").values()):
    time.sleep(1)
PYTHON
