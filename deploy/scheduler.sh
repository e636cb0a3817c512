#!/usr/bin/env bash
# In the image as syncbn-scheduler: a node of Ray that offers nothing, and the scheduler, which speaks to the other
# nodes through it. A node that has lost its head ends, and cannot come back; so whichever of the two ends first ends
# the other, and the container is started again.
set -u
ray start --address "${SYNCBN_RAY_ADDRESS:?is not set; it is HOST:PORT of the head of Ray}" --block \
  --num-cpus 0 --num-gpus 0 --include-log-monitor=false --disable-usage-stats --object-store-memory 104857600 &
node=$!
syncbn serve --role scheduler &
scheduler=$!
trap 'kill -TERM "$scheduler" 2>/dev/null' TERM INT # it steps down, so that another takes over at once

wait -n
code=$?
kill -TERM "$scheduler" 2>/dev/null
wait "$scheduler"
kill -TERM "$node" 2>/dev/null
wait "$node"
exit "$code"
