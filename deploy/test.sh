#!/usr/bin/env bash
# All tests in two processes: those of a real stack, which wait most of the time, beside those that compute.
set -euo pipefail
cd "$(dirname "$0")/.."
log=$(mktemp)
# Job control: in a process group of its own no Ctrl-C reaches it but ours, which it does not ignore.
set -m
$PYTEST tests/e2e >"$log" 2>&1 &
stack=$!
end() {
  kill -INT "$stack" 2>/dev/null || true
  wait "$stack" 2>/dev/null || true
  rm -f "$log"
}
trap end EXIT
trap 'exit 130' INT TERM

echo "tests/e2e runs beside these; what it says follows"
failed=0
$PYTEST --ignore tests/e2e || failed=$?
wait "$stack" || failed=$?
cat "$log"
exit "$failed"
