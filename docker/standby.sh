#!/bin/bash
# Starts a standby: copies the primary when the data directory is empty, then runs PostgreSQL as the image does.
# Expects PRIMARY_HOST, SLOT and REPLICATION_PASSWORD.
set -euo pipefail

if [ ! -s "$PGDATA/PG_VERSION" ]; then
  # A copy that was broken off is begun anew.
  mkdir -p "$PGDATA"
  find "$PGDATA" -mindepth 1 -delete
  export PGPASSWORD="$REPLICATION_PASSWORD"
  until pg_basebackup --pgdata="$PGDATA" --write-recovery-conf --slot="$SLOT" --checkpoint=fast \
    --dbname="host=$PRIMARY_HOST port=5432 user=replicator application_name=$SLOT"; do
    echo "waiting for $PRIMARY_HOST" >&2
    find "$PGDATA" -mindepth 1 -delete
    sleep 1
  done
  unset PGPASSWORD
  chown -R postgres:postgres "$PGDATA"
  chmod 0700 "$PGDATA"
fi

exec docker-entrypoint.sh "$@"
