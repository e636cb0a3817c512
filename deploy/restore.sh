#!/usr/bin/env bash
# Restores a backup made by backup.sh into a cluster without data:  restore.sh FOLDER COMPOSE...
set -euo pipefail
folder=$1
shift
for name in env syncbn.dump mlflow.dump artifacts.tar.gz checkpoints.tar.gz; do
  [ -e "$folder/$name" ] || { echo "$folder/$name is missing: this is not a backup" >&2; exit 1; }
done
if [ ! -e .env ]; then
  (umask 077 && cp "$folder/env" .env)
  echo "copied the backup's secrets to .env"
fi

"$@" up --detach postgres
for _ in $(seq 60); do
  "$@" exec -T postgres pg_isready --quiet --username syncbn --dbname mlflow --host 127.0.0.1 && break
  sleep 1
done
tables=$("$@" exec -T postgres psql --username syncbn --tuples-only --no-align \
  --command "select count(*) from information_schema.tables where table_schema = 'public'")
if [ "$tables" != 0 ]; then
  echo "the cluster has data: nothing was changed. To replace the data, first run: make cluster-down VOLUMES=1" >&2
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
# Points that MLflow received after its database was saved are still in the spools. Without spool.sent, the spools
# send every point again; MLflow stores equal points once.
"$@" run --rm --no-deps -T scheduler find /data/checkpoints -name spool.sent -delete
echo "restored; now run: make cluster-up"
