#!/usr/bin/env bash
# All tests, or with the argument `quick` those that need no server, in processes beside each other: whoever
# waits leaves the CPUs to the others. All tests on MLflow's server are in one of them, on PostgreSQL in another.
set -euo pipefail
cd "$(dirname "$0")/.."
beside=("tests/training tests/service/backends")
if [ "${1:-}" = quick ]; then
  export PYTEST_ADDOPTS="${PYTEST_ADDOPTS:-} -m 'not full'"
else
  stack=(tests/e2e/test_{deaths,interruptions,jobs,tutorial}.py) # they share one
  beside=("${stack[*]}" "${beside[0]} tests/e2e ${stack[*]/#/--ignore=}")
fi
rest=(--ignore=tests/e2e --ignore=tests/training --ignore=tests/service/backends)

logs=$(mktemp -d)
running=()
# Job control: otherwise what runs in the background ignores an interrupt, and so does all that it starts.
set -m
for folders in "${beside[@]}"; do
  # shellcheck disable=SC2086 # words of a command, names of folders
  $PYTEST $folders >"$logs/${#running[@]}" 2>&1 &
  running+=($!)
done
$PYTEST "${rest[@]}" &
running+=($!)

end() { # an interrupted pytest ends the servers that it has started
  # A command under test may take an interrupt for its own; its test fails then, and pytest goes on.
  while kill -INT "${running[@]}" 2>/dev/null || [ -n "$(jobs -r)" ]; do sleep 30; done
  wait || true
  rm -rf "$logs"
}
trap end EXIT
trap 'exit 130' INT TERM

echo "beside these run ${beside[*]}; what they say follows"
failed=0
for each in "${running[@]}"; do wait "$each" || failed=$?; done
cat "$logs"/*
exit "$failed"
