#!/usr/bin/env bash
# Waits until all containers are healthy and the API reports that it is ready:  wait-ready.sh COMPOSE...
set -euo pipefail
for _ in $(seq 90); do
  if ! "$@" ps | grep -q "health: starting" && "$@" exec -T api syncbn ready 2>/dev/null; then
    "$@" exec -T api syncbn cluster
    exit
  fi
  sleep 2
done
"$@" ps
"$@" exec -T api syncbn ready || true
echo "not ready after three minutes; see the services' output: $* logs" >&2
exit 1
