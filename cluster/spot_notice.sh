#!/usr/bin/env bash
# Turns AWS's notice that a spot instance is going to be taken into a drain of this Ray node, two minutes before it happens.
#
#     spot_notice.sh HEAD:PORT
#
# Runs on a node until the notice has come. $METADATA_URL and $INTERVAL_S are for tests.
set -euo pipefail

address=${1:?give host:port of the Ray head}
metadata=${METADATA_URL:-http://169.254.169.254/latest} interval_s=${INTERVAL_S:-5}
python=${PYTHON:-python3}

ask() { # path below the metadata: its text; fails if there is none
    local token
    token=$(curl -sf -m 5 -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' "$metadata/api/token") || return 1
    curl -sf -m 5 -H "X-aws-ec2-metadata-token: $token" "$metadata/$1"
}

until action=$(ask meta-data/spot/instance-action); do sleep "$interval_s"; done
echo "notice: $action"

# {"action": "terminate", "time": "2026-01-01T12:00:00Z"}: what is left, less five seconds for the way
left_s=$("$python" -c '
import datetime, json, sys
end = datetime.datetime.fromisoformat(json.loads(sys.argv[1])["time"].replace("Z", "+00:00"))
print(max(1, int((end - datetime.datetime.now(datetime.timezone.utc)).total_seconds()) - 5))' "$action")
exec "$(dirname "$0")/drain_node.sh" "$address" "$left_s" "the spot instance is taken"
