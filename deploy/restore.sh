#!/usr/bin/env bash
# Puts back what backup.sh has saved, into a cluster that has no data:  restore.sh FOLDER COMPOSE...
set -euo pipefail
folder=$1
shift
for name in env syncbn.dump mlflow.dump artifacts.tar.gz checkpoints.tar.gz; do
  [ -e "$folder/$name" ] || { echo "$folder/$name is not there: this is no backup" >&2; exit 1; }
done
if [ ! -e .env ]; then
  (umask 077 && cp "$folder/env" .env)
  echo "the secrets of the backup are in .env"
fi

"$@" up --detach postgres
for _ in $(seq 60); do
  "$@" exec -T postgres pg_isready --quiet --username syncbn --dbname mlflow --host 127.0.0.1 && break
  sleep 1
done
tables=$("$@" exec -T postgres psql --username syncbn --tuples-only --no-align \
  --command "select count(*) from information_schema.tables where table_schema = 'public'")
if [ "$tables" != 0 ]; then
  echo "there is data already: nothing was changed. To replace it, first: make cluster-down VOLUMES=1" >&2
  exit 1
fi
for database in syncbn mlflow; do
  echo "database $database"
  "$@" exec -T postgres pg_restore --username syncbn --exit-on-error --dbname "$database" <"$folder/$database.dump"
done
echo "artifacts"
"$@" run --rm --no-deps -T mlflow tar --directory /data --extract --gzip <"$folder/artifacts.tar.gz"
echo "runs"
"$@" run --rm --no-deps -T scheduler tar --directory /data --extract --gzip <"$folder/checkpoints.tar.gz"
# What MLflow took after its database was saved is still in the spools: they forget what they have sent, and
# send all again. MLflow keeps one of two points that are equal.
"$@" run --rm --no-deps -T scheduler find /data/checkpoints -name spool.sent -delete
echo "restored; now: make cluster-up"
