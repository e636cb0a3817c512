#!/usr/bin/env bash
# All tests in two processes: those of a real stack, which wait most of the time, beside those that compute.
set -euo pipefail
cd "$(dirname "$0")/.."
log=$(mktemp)
# Job control: otherwise what runs in the background ignores an interrupt, and so does all that it starts.
set -m
$PYTEST tests/e2e >"$log" 2>&1 &
stack=$!
$PYTEST --ignore tests/e2e &
rest=$!
end() { # an interrupted pytest ends the stack that it has started
  kill -INT "$stack" "$rest" 2>/dev/null || true
  # A command under test may take an interrupt for its own; its test fails then, and pytest goes on.
  while kill -0 "$rest" 2>/dev/null; do
    sleep 10
    kill -INT "$rest" 2>/dev/null || true
  done
  wait || true
  rm -f "$log"
}
trap end EXIT
trap 'exit 130' INT TERM

echo "tests/e2e runs beside these; what it says follows"
failed=0
wait "$rest" || failed=$?
wait "$stack" || failed=$?
cat "$log"
exit "$failed"
