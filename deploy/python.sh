#!/usr/bin/env bash
# Prints the newest Python on PATH for which torch and Ray have wheels (pyproject.toml's classifiers list the versions).
# Skips a Python that does not start (pyenv puts such ones on PATH) or cannot create a virtual environment.
set -euo pipefail
cd "$(dirname "$0")/.."
versions=$(sed -n 's/.*"Programming Language :: Python :: \(3\.[0-9]*\)".*/\1/p' pyproject.toml | sort -t. -k2 -nr)
without=
for version in $versions; do
  while read -r python; do
    if "$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then
      echo "$python"
      exit
    fi
    "$python" -c '' >/dev/null 2>&1 && without+=" $python"
  done < <(type -ap "python$version")
done
echo "torch and Ray have wheels for Python" $versions "and none of them on PATH can create a virtual environment:" \
  "install one, or name it: make setup PYTHON=/path/to/python" >&2
[ -z "$without" ] || echo "without the modules venv and ensurepip (Debian's package python3.X-venv):$without" >&2
exit 1
