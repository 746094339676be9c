#!/usr/bin/env bash
# On an EC2 spot machine: wait for the notice that comes two minutes before it is taken away, then drain the node.
# Started in the background by launcher_aws.yaml; ends after the first notice.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
service=${SPOT_METADATA:-http://169.254.169.254}
while true; do
  token=$(curl -sf -X PUT "$service/latest/api/token" -H "X-aws-ec2-metadata-token-ttl-seconds: 60" || true)
  # 404 until there is a notice
  if curl -sf "$service/latest/meta-data/spot/instance-action" -H "X-aws-ec2-metadata-token: $token" >/dev/null; then
    exec bash "$here/drain_this_node.sh" 110
  fi
  sleep 5
done
