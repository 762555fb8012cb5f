#!/bin/sh
# Runs once, while the primary's data directory is initialised: a role and a slot for each standby.
set -eu
psql -v ON_ERROR_STOP=1 -v password="$REPLICATION_PASSWORD" --username "$POSTGRES_USER" --dbname postgres <<'SQL'
CREATE ROLE replicator LOGIN REPLICATION PASSWORD :'password';
SELECT pg_create_physical_replication_slot('standby1');
SELECT pg_create_physical_replication_slot('standby2');
SQL
echo "host replication replicator all scram-sha-256" >>"$PGDATA/pg_hba.conf"
