#!/usr/bin/env bash
# Installed in the image as syncbn-scheduler. Runs a Ray node without resources and the scheduler, which reaches the
# other nodes through it. A node that has lost its head exits and cannot rejoin. So when either of the two exits, this
# script stops the other, and the container restarts.
set -u
: "${SYNCBN_RAY_ADDRESS:?is not set; it is HOST:PORT of the Ray head}"
ray start --address "${SYNCBN_RAY_ADDRESS}" --block \
  --num-cpus 0 --num-gpus 0 --include-log-monitor=false --disable-usage-stats --object-store-memory 104857600 &
node=$!
syncbn serve --role scheduler &
scheduler=$!
trap 'kill -TERM "$scheduler" 2>/dev/null' TERM INT # the scheduler steps down, so that a standby takes over at once

wait -n
code=$?
kill -TERM "$scheduler" 2>/dev/null
wait "$scheduler"
kill -TERM "$node" 2>/dev/null
wait "$node"
exit "$code"
