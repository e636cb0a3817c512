#!/usr/bin/env bash
# What the tests use of the system: PostgreSQL's server, Debian's package of Fashion-MNIST, Compose, which
# only reads its files here (its recommended packages would bring a container engine), and ip for a second machine.
# Where apt-get cannot install them, the tests on PostgreSQL and Compose are skipped with that reason, those on
# Fashion-MNIST download it into the cache, and two Ray nodes share one network.
set -euo pipefail
missing=()
compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || command -v initdb >/dev/null || missing+=(postgresql)
[ -d /usr/share/datasets/fashion-mnist ] || missing+=(dataset-fashion-mnist)
command -v docker-compose >/dev/null || missing+=(docker-compose)
command -v ip >/dev/null || missing+=(iproute2)
if [ ${#missing[@]} -gt 0 ] && command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
  apt-get update -q >/dev/null
  DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}" >/dev/null
fi
