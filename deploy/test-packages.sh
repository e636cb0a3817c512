#!/usr/bin/env bash
# What the tests use of the system: PostgreSQL's server and Debian's package of Fashion-MNIST.
# Where apt-get cannot install them, the tests on PostgreSQL are skipped with that reason, and those on
# Fashion-MNIST download it into the cache.
set -euo pipefail
missing=()
compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || command -v initdb >/dev/null || missing+=(postgresql)
[ -d /usr/share/datasets/fashion-mnist ] || missing+=(dataset-fashion-mnist)
if [ ${#missing[@]} -gt 0 ] && command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
  apt-get update -q >/dev/null
  DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}" >/dev/null
fi
