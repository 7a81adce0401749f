#!/usr/bin/env bash
# Keeps a service up: runs a command in the background, and again a moment after it has failed, until it ends well or the machine does.
# Returns at once; does nothing where a service of that name is kept up already.
#
#     keep_up.sh NAME COMMAND...
#
# What it prints goes to $ORCHESTRATOR_HOME/logs/NAME.log. $PAUSE_S is for tests.
set -euo pipefail

name=${1:?name the service}
shift
: "${1:?give the command that is kept up}"
logs=${ORCHESTRATOR_HOME:?}/logs
mkdir -p "$logs"
exec 9>"$logs/$name.lock" # held by the loop alone: what a command leaves behind does not keep the next loop away
flock --nonblock 9 || { echo "$name is kept up already"; exit 0; }
export PAUSE_S=${PAUSE_S:-5}
# shellcheck disable=SC2016  # for the shell that loops
setsid nohup bash -c 'until "$@" 9>&-; do echo "$0 ended with $?: again in $PAUSE_S s"; sleep "$PAUSE_S" 9>&-; done' "$name" "$@" \
    >>"$logs/$name.log" 2>&1 </dev/null &
