#!/usr/bin/env bash
# All tests, in three processes side by side: most of them wait, for Ray, for MLflow, for time to pass.
set -euo pipefail
shopt -s extglob
cd "$(dirname "$0")/.."
logs=$(mktemp -d)
# Job control: otherwise what runs in the background ignores an interrupt, and so does all that it starts.
set -m
$PYTEST tests/e2e --ignore tests/e2e/test_train.py >"$logs/stack" 2>&1 &
stack=$!
$PYTEST tests/training >"$logs/training" 2>&1 &
training=$!
$PYTEST tests/!(e2e|training|_*) tests/e2e/test_train.py &
rest=$!
end() { # an interrupted pytest ends what it has started
  kill -INT "$stack" "$training" "$rest" 2>/dev/null || true
  # A command under test may take an interrupt for its own; its test fails then, and pytest goes on.
  while kill -0 "$training" 2>/dev/null || kill -0 "$rest" 2>/dev/null; do
    sleep 10
    kill -INT "$training" "$rest" 2>/dev/null || true
  done
  wait || true
  rm -rf "$logs"
}
trap end EXIT
trap 'exit 130' INT TERM

echo "tests/e2e and tests/training run beside these; what they say follows"
failed=0
wait "$rest" || failed=$?
for part in training stack; do
  wait "${!part}" || failed=$?
  cat "$logs/$part"
done
exit "$failed"
