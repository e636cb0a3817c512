#!/usr/bin/env bash
# Prints the newest Python on PATH that torch and Ray have wheels for: pyproject.toml's classifiers name them.
# One that does not start is passed over (pyenv puts such on PATH), and so is one that cannot make an environment.
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
echo "torch and Ray have wheels for Python" $versions "and there is none of them on PATH that can make an environment:" \
  "install one, or name it: make setup PYTHON=/path/to/python" >&2
[ -z "$without" ] || echo "without the modules venv and ensurepip (Debian's package python3.X-venv):$without" >&2
exit 1
