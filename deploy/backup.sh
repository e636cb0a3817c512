#!/usr/bin/env bash
# Saves the data of a running cluster into a new folder:  backup.sh FOLDER COMPOSE...
set -euo pipefail
folder=$1
shift
umask 077
mkdir -p "$folder"
[ -z "$(ls -A "$folder")" ] || { echo "$folder is not empty: name a new one" >&2; exit 1; }

# The order matters: each part refers only to later ones (jobs to runs, runs to files).
for database in syncbn mlflow; do
  echo "database $database"
  "$@" exec -T postgres pg_dump --username syncbn --format custom "$database" >"$folder/$database.dump"
done
echo "artifacts"
"$@" exec -T mlflow tar --directory /data --create --gzip artifacts >"$folder/artifacts.tar.gz"
echo "runs"
# A running job replaces files meanwhile, which makes tar exit with code 1. Torn checkpoints are never used.
"$@" exec -T api tar --directory /data --create --gzip --warning=no-file-changed \
  --warning=no-file-removed checkpoints >"$folder/checkpoints.tar.gz" || [ $? = 1 ]
cp .env "$folder/env"
du -sh "$folder"
