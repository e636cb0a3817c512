#!/usr/bin/env bash
# Writes .env from deploy/.env.example with new secrets; never changes an existing .env.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -e .env ]; then
  echo ".env exists already: nothing changed"
  exit
fi
umask 077
key() { head -c 32 /dev/urandom | base64 | tr '+/' '-_' | tr -d '\n'; }
secret() { od -An -N32 -tx1 /dev/urandom | tr -d ' \n'; }
while IFS= read -r line; do
  case $line in
    SYNCBN_API_KEY= | RAY_AUTH_TOKEN= | POSTGRES_PASSWORD=) echo "$line$(secret)" ;;
    SYNCBN_SECRETS_KEY=) echo "$line$(key)" ;;
    *) echo "$line" ;;
  esac
done <deploy/.env.example >.env.new
mv .env.new .env
echo "new secrets are in .env; anyone who has SYNCBN_API_KEY can run code on the cluster"
