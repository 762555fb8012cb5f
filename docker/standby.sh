#!/bin/bash
# Starts a standby: copies the primary when the data directory is empty, then runs PostgreSQL as the image does.
# With the argument `follow`: makes the standby that runs here follow PRIMARY_HOST from now on.
# Expects PRIMARY_HOST, SLOT, REPLICATION_PASSWORD and POSTGRES_PASSWORD.
set -euo pipefail

sql() {
  psql --no-psqlrc --quiet --tuples-only --set ON_ERROR_STOP=1 --username postgres --dbname postgres "$@"
}

if [ "${1:-}" = follow ]; then
  # A promoted standby has no slot for the others.
  PGPASSWORD="$POSTGRES_PASSWORD" sql --host "$PRIMARY_HOST" --output /dev/null --command \
    "SELECT pg_create_physical_replication_slot('$SLOT')
      WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = '$SLOT')"
  source="host=$PRIMARY_HOST port=5432 user=replicator password=$REPLICATION_PASSWORD application_name=$SLOT"
  sql --command "ALTER SYSTEM SET primary_conninfo = '$source'"
  sql --output /dev/null --command "SELECT pg_reload_conf()"
  echo "$SLOT follows $PRIMARY_HOST"
  exit
fi

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
