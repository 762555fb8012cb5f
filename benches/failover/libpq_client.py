"""A client of libpq's own fail-over: it knows all nodes, asks for the one that can be written, and reconnects when it has lost it.

Each line is a write that was acknowledged.
"""

import sys
import time

import psycopg

conninfo = sys.argv[1]
while True:
    try:
        with psycopg.connect(conninfo, autocommit=True) as connection:
            while True:
                connection.execute("INSERT INTO ledger VALUES (0)")
                print("written", flush=True)
                time.sleep(0.001)
    except psycopg.Error:
        # Nobody may be writable yet: again, at once.
        time.sleep(0.001)
