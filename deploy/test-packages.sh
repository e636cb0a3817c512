#!/usr/bin/env bash
# Installs the system packages that the tests use: PostgreSQL's server, Debian's Fashion-MNIST, Compose (only to read
# its files; its recommended packages would install a container engine), ip for a second machine, and Chromium for the pages of
# the console. If apt-get cannot install them, tests on PostgreSQL, Compose and pages are skipped with that reason,
# tests on Fashion-MNIST download it into the cache, and two Ray nodes share one network.
set -euo pipefail
missing=()
compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || command -v initdb >/dev/null || missing+=(postgresql)
[ -d /usr/share/datasets/fashion-mnist ] || missing+=(dataset-fashion-mnist)
command -v docker-compose >/dev/null || missing+=(docker-compose)
command -v ip >/dev/null || missing+=(iproute2)
command -v chromium-headless-shell >/dev/null || command -v chromium >/dev/null || missing+=(chromium-headless-shell)
if [ ${#missing[@]} -gt 0 ] && command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
  apt-get update -q >/dev/null
  DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}" >/dev/null
fi
