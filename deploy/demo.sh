#!/usr/bin/env bash
# Starts the embedded stack, submits one spec over REST, follows the job until it ends, stops the stack.
#   deploy/demo.sh SPEC [--set key=value …]     PORT, MLFLOW_PORT, KEEP from the environment
set -euo pipefail
cd "$(dirname "$0")/.."
syncbn=.venv/bin/syncbn
data=demo
export SYNCBN_URL=http://127.0.0.1:${PORT:-8000}

end() {
  if [ -n "${stack:-}" ]; then
    kill -TERM "$stack" 2>/dev/null || true
    wait "$stack" || true
    stack=
  fi
}
trap end EXIT
trap 'exit 130' INT TERM

$syncbn down --data-dir "$data" --quiet
if [ -n "${KEEP:-}" ]; then
  mkdir -p "$data"
  nohup setsid $syncbn up --data-dir "$data" --port "${PORT:-8000}" --mlflow-port "${MLFLOW_PORT:-5000}" \
    >"$data/up.log" 2>&1 &
else
  $syncbn up --data-dir "$data" --port "${PORT:-8000}" --mlflow-port "${MLFLOW_PORT:-5000}" &
fi
stack=$!

echo "starting Ray, MLflow and the API; this takes about half a minute"
until $syncbn ready >/dev/null 2>&1; do
  if ! kill -0 "$stack" 2>/dev/null; then
    [ -z "${KEEP:-}" ] || cat "$data/up.log" >&2
    stack=
    exit 1
  fi
  sleep 1
done

$syncbn submit "$@" --follow
if [ -n "${KEEP:-}" ]; then
  trap - EXIT
  echo
  echo "the stack keeps running"
  grep "^  console" "$data/up.log"
  echo "  MLflow  http://127.0.0.1:${MLFLOW_PORT:-5000}"
  echo "stop it with: make demo-down"
fi
