#!/usr/bin/env bash
# Runs all tests, or with the argument `quick` those that need no server, in parallel processes: tests that wait leave
# the CPUs to the others. All tests on MLflow's server are in one process, all tests on PostgreSQL in another.
set -euo pipefail
cd "$(dirname "$0")/.."
rest=(--ignore=tests/e2e)
if [ "${1:-}" = quick ]; then
  export PYTEST_ADDOPTS="${PYTEST_ADDOPTS:-} -m 'not full'"
  parallel=(tests/service "tests/training tests/deploy tests/benchmarks")
  rest+=(--ignore=tests/service --ignore=tests/training --ignore=tests/deploy --ignore=tests/benchmarks)
else
  # Of tests/training, files that compute much run with the rest: the processes compute about as much.
  tables=(tests/training/test_{as_lightning,lab_networks,lightning_cli}.py)
  bits=()
  for each in tests/training/bits/test_*.py; do
    [[ $each = */test_environment.py ]] || bits+=("$each") # which needs MLflow's server
  done
  mlflow=(tests/service/backends tests/service/doctor/test_servers.py)
  runs=tests/benchmarks/paper/test_runs.py
  parallel=(tests/e2e "tests/training ${mlflow[*]} $runs ${tables[*]/#/--ignore=} ${bits[*]/#/--ignore=}"
    "tests/service ${mlflow[*]/#/--ignore=} --ignore=tests/service/web" "tests/service/web ${bits[*]}")
  rest+=(--ignore=tests/service "--ignore=$runs")
  for each in tests/training/*/ tests/training/test_*.py; do
    [[ " ${tables[*]} " = *" $each "* ]] || rest+=("--ignore=$each")
  done
fi

logs=$(mktemp -d)
running=()
# Job control: without it, background processes and their children ignore interrupts.
set -m
for folders in "${parallel[@]}"; do
  # `up` starts ranks with niceness 5. With 0, the other tests would leave those of tests/e2e, the longest, little time.
  niceness=5
  [ "$folders" != tests/e2e ] || niceness=0
  # shellcheck disable=SC2086 # split into words: a command, names of folders
  nice -n $niceness $PYTEST $folders >"$logs/${#running[@]}" 2>&1 &
  running+=($!)
done
nice -n 5 $PYTEST "${rest[@]}" &
running+=($!)

end() { # an interrupted pytest stops the servers that it has started
  # A command under test may handle the interrupt; then its test fails and pytest continues, so interrupt again.
  while kill -INT "${running[@]}" 2>/dev/null || [ -n "$(jobs -r)" ]; do sleep 30; done
  wait || true
  rm -rf "$logs"
}
trap end EXIT
trap 'exit 130' INT TERM

echo "${parallel[*]} run in parallel; their output follows at the end"
failed=0
for each in "${running[@]}"; do wait "$each" || failed=$?; done
cat "$logs"/*
exit "$failed"
