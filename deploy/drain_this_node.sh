#!/usr/bin/env bash
# Tell Ray that this machine goes away in SECONDS: trials on it end their epoch, save, and go on elsewhere.
# Waits as long, so that nothing is stopped before (a preStop hook ends when this does).
set -euo pipefail
seconds=${1:?"usage: drain_this_node.sh SECONDS"}
ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message "the machine is taken away" \
  --deadline-remaining-seconds "$seconds"
sleep "$seconds"
