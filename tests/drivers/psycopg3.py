"""What an application does with psycopg 3, as checks that print one line each.

Connects to $DATABASE_URL, whoever answers there. Each check runs in a connection of its own, then those that take one
run again one after the other in a single connection. tests/drivers.rs compares the lines of two servers.
"""

import asyncio
import datetime
import decimal
import inspect
import os
import signal
import socket
import threading
import time
import uuid

import psycopg
from psycopg import errors, sql
from psycopg.pq import DiagnosticField, ExecStatus, TransactionStatus
from psycopg.types.json import Json, Jsonb

URL = os.environ["DATABASE_URL"]
# Where the server that answers must be the one that writes; a comment like any other where nobody reads it.
ON_PRIMARY = "/* pgsteer: target=primary */ "

IDLE = TransactionStatus.IDLE
IN_TRANSACTION = TransactionStatus.INTRANS
FAILED = TransactionStatus.INERROR

# Seconds that a check may take.
BOUND = int(os.environ.get("CHECK_TIMEOUT", "30"))

CHECKS = []

# The connections of the check that runs.
OPEN = []


def check(function):
    """Registers a check. One with a parameter gets a connection in autocommit; what it returns is printed."""
    CHECKS.append(function)
    return function


def connect(**arguments):
    connection = psycopg.connect(URL, **({"autocommit": True} | arguments))
    OPEN.append(connection)
    return connection


def raises(kind, function, *arguments, **keywords):
    try:
        function(*arguments, **keywords)
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


def one(connection, query, parameters=None, **keywords):
    return connection.execute(query, parameters, **keywords).fetchone()[0]


def idle():
    """Pauses as applications do: any server that has caught up may answer what comes next."""
    time.sleep(0.15)


def table(connection, name, columns):
    connection.execute(f"DROP TABLE IF EXISTS {name}")
    connection.execute(f"CREATE TABLE {name} ({columns})")


@check
def what_the_server_reports(connection):
    names = (
        "server_version server_encoding client_encoding DateStyle IntervalStyle TimeZone integer_datetimes "
        "standard_conforming_strings is_superuser session_authorization application_name in_hot_standby "
        "default_transaction_read_only"
    ).split()
    assert connection.info.backend_pid > 0
    assert connection.info.transaction_status == IDLE
    return {name: connection.info.parameter_status(name) for name in names}


@check
def types_round_trip(connection):
    zone = datetime.timezone(datetime.timedelta(hours=5, minutes=30))
    values = [
        ("int2", -32768),
        ("int4", 2**31 - 1),
        ("int8", -(2**63)),
        ("float4", 0.5),
        ("float8", 1.7976931348623157e308),
        ("numeric", decimal.Decimal("-12345678901234567890.000000000123456789")),
        ("text", "Ærøskøbing 東京 \U0001f418 ' \\ \" \t\n"),
        ("varchar", ""),
        ("bytea", bytes(range(256))),
        ("bool", True),
        ("date", datetime.date(4, 2, 29)),
        ("time", datetime.time(23, 59, 59, 999999)),
        ("timestamp", datetime.datetime(1999, 12, 31, 23, 59, 59, 999999)),
        ("timestamptz", datetime.datetime(2024, 2, 29, 12, 0, 0, 1, tzinfo=zone)),
        ("interval", datetime.timedelta(days=-3, seconds=7, microseconds=1)),
        ("uuid", uuid.UUID("12345678-1234-5678-1234-567812345678")),
        ("int4[]", [1, None, 3]),
        ("text[]", ["a,b", '"', "", "NULL", "日本"]),
        ("int4[]", [[1, 2], [3, 4]]),
        ("int4", None),
        ("text", None),
    ]
    documents = {"a": [1, 2.5, None, True], "ü": {"nested": "日本"}}
    table(connection, "p_types", ", ".join(f"c{i} {kind}" for i, (kind, _) in enumerate(values)))
    placeholders = ", ".join(["%s"] * len(values))
    wanted = tuple(value for _, value in values)
    for binary in (False, True):
        for prepare in (False, True):
            connection.execute("TRUNCATE p_types")
            connection.execute(f"INSERT INTO p_types VALUES ({placeholders})", wanted, prepare=prepare, binary=binary)
            for _ in range(2):
                cursor = connection.execute("SELECT * FROM p_types", prepare=prepare, binary=binary)
                assert cursor.fetchone() == wanted, (binary, prepare)
            for kind, wrap in (("json", Json), ("jsonb", Jsonb)):
                got = one(connection, f"SELECT %s::{kind}", [wrap(documents)], prepare=prepare, binary=binary)
                assert got == documents
            for special in ("Infinity", "-Infinity", "NaN"):
                assert str(one(connection, "SELECT %s::float8", [float(special)], binary=binary)) == str(float(special))


@check
def parameters(connection):
    numbers = list(range(3000))
    query = "SELECT " + " + ".join(["%s::int8"] * len(numbers))
    assert one(connection, query, numbers) == sum(numbers)
    assert one(connection, "SELECT %(a)s || %(b)s || %(a)s", {"a": "x", "b": "%"}) == "x%x"
    assert connection.execute("SELECT %s::int IS NULL, 5 %% 3", [None]).fetchone() == (True, 2)
    assert one(connection, "SELECT x FROM unnest(%s) x WHERE x = ANY(%s)", [[1, 2, 3], [2]]) == 2
    composed = sql.SQL("SELECT {} AS {}").format(sql.Literal("it's"), sql.Identifier('a "b"'))
    cursor = connection.execute(composed)
    assert (cursor.fetchone(), cursor.description[0].name) == (("it's",), 'a "b"')
    client_side = psycopg.ClientCursor(connection)
    assert client_side.execute("SELECT %s, %s", ["';--", None]).fetchone() == ("';--", None)
    raw = psycopg.RawCursor(connection)
    assert raw.execute("SELECT $2::int - $1::int", [1, 3]).fetchone() == (2,)


@check
def command_tags(connection):
    table(connection, "p_tags", "i int, t text")
    tags = []
    for query in (
        "INSERT INTO p_tags SELECT i, 'x' FROM generate_series(1, 5) i",
        "UPDATE p_tags SET t = 'y' WHERE i > 2",
        "DELETE FROM p_tags WHERE i = 1",
        "SELECT * FROM p_tags",
        "SELECT * FROM p_tags WHERE false",
        "TABLE p_tags",
        "VALUES (1), (2)",
        "EXPLAIN (COSTS OFF) SELECT 1",
        "SHOW server_version_num",
        "CREATE TABLE p_tags2 AS SELECT * FROM p_tags",
        "DROP TABLE p_tags2",
    ):
        cursor = connection.execute(query)
        columns = [column.name for column in cursor.description or []]
        tags.append((cursor.statusmessage, cursor.rowcount, columns))
    return tags


@check
def transactions(connection):
    table(connection, "p_transactions", "i int PRIMARY KEY")
    with connection.transaction():
        connection.execute("INSERT INTO p_transactions VALUES (1)")
        assert connection.info.transaction_status == IN_TRANSACTION
    with connection.transaction(force_rollback=True):
        connection.execute("INSERT INTO p_transactions VALUES (2)")
        assert one(connection, "SELECT count(*) FROM p_transactions") == 2
    assert one(connection, "SELECT count(*) FROM p_transactions") == 1
    # Without autocommit a transaction begins by itself.
    connection.autocommit = False
    assert one(connection, "SELECT count(*) FROM p_transactions") == 1
    assert connection.info.transaction_status == IN_TRANSACTION
    connection.execute("INSERT INTO p_transactions VALUES (3)")
    connection.rollback()
    assert connection.info.transaction_status == IDLE
    connection.execute("INSERT INTO p_transactions VALUES (4)")
    connection.commit()
    assert connection.execute("SELECT i FROM p_transactions ORDER BY i").fetchall() == [(1,), (4,)]
    connection.commit()
    connection.autocommit = True


@check
def savepoints(connection):
    table(connection, "p_savepoints", "i int PRIMARY KEY")
    with connection.transaction():
        connection.execute("INSERT INTO p_savepoints VALUES (1)")

        def nested():
            with connection.transaction("inner"):
                connection.execute("INSERT INTO p_savepoints VALUES (2)")
                connection.execute("INSERT INTO p_savepoints VALUES (1)")

        raises(errors.UniqueViolation, nested)
        assert connection.info.transaction_status == IN_TRANSACTION
        for i in range(10, 20):
            with connection.transaction():
                connection.execute("INSERT INTO p_savepoints VALUES (%s)", [i])
                if i % 2:
                    raise psycopg.Rollback()
    got = connection.execute("SELECT array_agg(i ORDER BY i) FROM p_savepoints").fetchone()[0]
    assert got == [1, 10, 12, 14, 16, 18], got


@check
def errors_in_a_transaction(connection):
    table(connection, "p_errors", "i int CONSTRAINT positive CHECK (i > 0)")
    connection.autocommit = False
    connection.execute("INSERT INTO p_errors VALUES (1)")
    error = raises(errors.CheckViolation, connection.execute, "INSERT INTO p_errors VALUES (-1)")
    assert error.diag.constraint_name == "positive" and error.diag.table_name == "p_errors"
    assert connection.info.transaction_status == FAILED
    raises(errors.InFailedSqlTransaction, connection.execute, "SELECT 1")
    connection.rollback()
    assert connection.info.transaction_status == IDLE
    # COMMIT of a failed one rolls back.
    connection.execute("INSERT INTO p_errors VALUES (2)")
    raises(errors.DivisionByZero, connection.execute, "SELECT 1/0")
    connection.commit()
    assert one(connection, "SELECT count(*) FROM p_errors") == 0
    # A first statement that fails.
    connection.commit()
    raises(errors.UndefinedTable, connection.execute, "SELECT * FROM p_nothing")
    assert connection.info.transaction_status == FAILED
    connection.rollback()
    connection.autocommit = True


@check
def errors_outside_of_a_transaction(connection):
    seen = []
    for query in (
        "SELEC 1",
        "SELECT * FROM p_nothing",
        "SELECT nothing FROM pg_class",
        "SELECT 1/0",
        "SELECT 'x'::int",
        "SELECT nothing(1)",
        "INSERT INTO p_nothing VALUES (1)",
        "SELECT 1/(i - 50) FROM generate_series(1, 100) i",
        "SELECT '{'::json",
        "COMMIT PREPARED 'nothing'",
        "FETCH 1 FROM nothing",
        "EXECUTE nothing",
        "DO $$ BEGIN RAISE 'x' USING ERRCODE = 'ZZ001', DETAIL = 'd', HINT = 'h', COLUMN = 'c'; END $$",
    ):
        error = raises(psycopg.Error, connection.execute, query)
        diag = error.diag
        seen.append((error.sqlstate, diag.message_primary, diag.message_detail, diag.message_hint))
        seen.append((diag.statement_position, diag.severity, diag.column_name, diag.source_function))
        assert connection.info.transaction_status == IDLE
        assert one(connection, "SELECT 1") == 1
    return seen


@check
def isolation_and_access_mode(connection):
    table(connection, "p_isolation", "i int")
    connection.execute("INSERT INTO p_isolation VALUES (1)")
    connection.autocommit = False
    for level in psycopg.IsolationLevel:
        for read_only in (None, False, True):
            connection.isolation_level = level
            connection.read_only = read_only
            shown = one(connection, "SHOW transaction_isolation"), one(connection, "SHOW transaction_read_only")
            assert shown == (level.name.lower().replace("_", " "), "on" if read_only else "off"), shown
            assert one(connection, "SELECT i FROM p_isolation") == 1
            if read_only:
                error = raises(psycopg.Error, connection.execute, "INSERT INTO p_isolation VALUES (2)")
                assert error.sqlstate == "25006", error.sqlstate
            connection.rollback()
            # The first statement decides where a READ ONLY transaction runs.
            assert one(connection, "SELECT count(*) FROM p_isolation") == 1
            connection.commit()
    connection.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
    connection.read_only = connection.deferrable = True
    assert one(connection, "SELECT count(*) FROM p_isolation") == 1
    assert one(connection, "SHOW transaction_deferrable") == "on"
    connection.rollback()
    connection.isolation_level = connection.read_only = connection.deferrable = None
    connection.autocommit = True


@check
def two_connections(connection):
    table(connection, "p_two", "i int PRIMARY KEY, n int")
    connection.execute("INSERT INTO p_two VALUES (1, 0)")
    with connect() as other, connection.transaction():
        connection.execute("UPDATE p_two SET n = 1")
        # What others have committed may come late where a standby answers.
        assert one(other, ON_PRIMARY + "SELECT n FROM p_two") == 0
        raises(errors.LockNotAvailable, other.execute, "SELECT * FROM p_two FOR UPDATE NOWAIT")
        with other.transaction():
            other.execute("SET LOCAL lock_timeout = '20ms'")
            raises(errors.LockNotAvailable, other.execute, "UPDATE p_two SET n = 2")
            raise psycopg.Rollback()
    assert one(connection, "SELECT n FROM p_two") == 1


@check
def two_phase_commit(connection):
    table(connection, "p_two_phase", "i int")
    for number, outcome in enumerate(("tpc_commit", "tpc_rollback")):
        xid = connection.xid(7, f"{connection.info.dbname}-{number}", "branch")
        connection.autocommit = False
        connection.tpc_begin(xid)
        connection.execute("INSERT INTO p_two_phase VALUES (%s)", [number])
        connection.tpc_prepare()
        with connect() as other:
            prepared = "SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database()"
            assert one(other, ON_PRIMARY + prepared) == 1
        getattr(connection, outcome)()
        connection.autocommit = True
    assert connection.execute("SELECT i FROM p_two_phase").fetchall() == [(0,)]


@check
def pipeline(connection):
    table(connection, "p_pipeline", "i int PRIMARY KEY")
    with connection.pipeline():
        cursors = []
        for i in range(300):
            connection.execute("INSERT INTO p_pipeline VALUES (%s)", [i])
            cursors.append(connection.execute("SELECT count(*), %s::int FROM p_pipeline", [i]))
        for i, cursor in enumerate(cursors):
            assert cursor.fetchone() == (i + 1, i)
    assert one(connection, "SELECT count(*) FROM p_pipeline") == 300
    # Reads only.
    with connection.pipeline():
        cursors = [connection.execute("SELECT %s::int", [i]) for i in range(300)]
        assert [cursor.fetchone()[0] for cursor in cursors] == list(range(300))
    # A sync in between.
    with connection.pipeline() as pipe:
        first = connection.execute("SELECT 1")
        pipe.sync()
        second = connection.execute("SELECT 2")
        assert second.fetchone() == (2,)
        assert first.fetchone() == (1,)
    # In transactions.
    with connection.pipeline():
        with connection.transaction():
            connection.execute("INSERT INTO p_pipeline VALUES (1000)")
            with connection.transaction(force_rollback=True):
                connection.execute("INSERT INTO p_pipeline VALUES (1001)")
        counted = connection.execute("SELECT count(*) FROM p_pipeline WHERE i >= 1000")
    assert counted.fetchone() == (1,)


@check
def pipeline_errors(connection):
    table(connection, "p_pipeline_errors", "i int PRIMARY KEY")

    def failing():
        with connection.pipeline() as pipe:
            connection.execute("INSERT INTO p_pipeline_errors VALUES (1)")
            pipe.sync()
            connection.execute("INSERT INTO p_pipeline_errors VALUES (2)")
            connection.execute("INSERT INTO p_pipeline_errors VALUES (1)")
            connection.execute("INSERT INTO p_pipeline_errors VALUES (3)")
            pipe.sync()

    raises(errors.UniqueViolation, failing)
    assert connection.info.transaction_status == IDLE
    # Up to a sync all is one transaction.
    assert connection.execute("SELECT i FROM p_pipeline_errors").fetchall() == [(1,)]

    def failing_read():
        with connection.pipeline():
            connection.execute("SELECT 1/0 FROM p_pipeline_errors")
            connection.execute("SELECT 1")

    raises(errors.DivisionByZero, failing_read)
    with connection.pipeline():
        assert connection.execute("SELECT count(*) FROM p_pipeline_errors").fetchone() == (1,)


@check
def executemany(connection):
    table(connection, "p_many", "i int, t text")
    cursor = connection.cursor()
    cursor.executemany("INSERT INTO p_many VALUES (%s, %s)", [(i, f"ü{i}") for i in range(1000)])
    assert cursor.rowcount == 1000
    cursor.executemany("UPDATE p_many SET t = t || '!' WHERE i = %s RETURNING t", [(5,), (6,)], returning=True)
    got = [result.fetchone() for result in cursor.results()]
    assert got == [("ü5!",), ("ü6!",)]
    assert one(connection, "SELECT sum(i) FROM p_many") == 499500


@check
def copy_in(connection):
    table(connection, "p_copy", "i int, t text, b bytea")
    rows = [(i, "tab\t newline\n back\\slash ü 日本" if i % 2 else None, bytes([i % 256])) for i in range(20000)]
    cursor = connection.cursor()
    with cursor.copy("COPY p_copy FROM STDIN") as copy:
        for row in rows:
            copy.write_row(row)
    assert cursor.rowcount == 20000
    assert cursor.execute("SELECT * FROM p_copy ORDER BY i").fetchall() == rows
    cursor.execute("TRUNCATE p_copy")
    with cursor.copy("COPY p_copy FROM STDIN (FORMAT binary)") as copy:
        copy.set_types(["int4", "text", "bytea"])
        for row in rows:
            copy.write_row(row)
    assert cursor.execute("SELECT * FROM p_copy ORDER BY i").fetchall() == rows
    # The client gives up.
    cursor.execute("TRUNCATE p_copy")

    def given_up():
        with cursor.copy("COPY p_copy FROM STDIN") as copy:
            copy.write_row(rows[0])
            raise KeyError("given up")

    raises(KeyError, given_up)

    # The server gives up.
    def refused():
        with cursor.copy("COPY p_copy FROM STDIN") as copy:
            for _ in range(1000):
                copy.write("x\ty\tz\n" * 1000)

    raises(errors.InvalidTextRepresentation, refused)
    assert connection.info.transaction_status == IDLE
    with cursor.copy("COPY p_copy FROM STDIN") as copy:
        pass
    assert one(connection, "SELECT count(*) FROM p_copy") == 0
    # In a transaction that is rolled back.
    with connection.transaction(force_rollback=True):
        with cursor.copy("COPY p_copy (i) FROM STDIN") as copy:
            copy.write("1\n")
        assert one(connection, "SELECT count(*) FROM p_copy") == 1
    assert one(connection, "SELECT count(*) FROM p_copy") == 0


@check
def copy_out(connection):
    table(connection, "p_out", "i int, t text")
    connection.execute("INSERT INTO p_out SELECT i, 'ü' || i FROM generate_series(1, 20000) i")
    wanted = [(i, f"ü{i}") for i in range(1, 20001)]
    cursor = connection.cursor()
    for query, types in (
        ("COPY p_out TO STDOUT", ["int4", "text"]),
        ("COPY (SELECT * FROM p_out ORDER BY i) TO STDOUT (FORMAT binary)", ["int4", "text"]),
    ):
        with cursor.copy(query) as copy:
            copy.set_types(types)
            assert list(copy.rows()) == wanted
    with cursor.copy("COPY (SELECT 1 WHERE false) TO STDOUT") as copy:
        assert list(copy) == []
    # An error after data.
    def failing():
        with cursor.copy("COPY (SELECT 1/(i - 9000) FROM generate_series(1, 10000) i) TO STDOUT") as copy:
            for _ in copy:
                pass

    raises(errors.DivisionByZero, failing)


@check
def server_cursors(connection):
    table(connection, "p_cursor", "i int")
    connection.execute("INSERT INTO p_cursor SELECT generate_series(1, 1000)")
    connection.autocommit = False
    with connection.cursor("c1") as cursor:
        cursor.itersize = 7
        cursor.execute("SELECT i FROM p_cursor WHERE i > %s ORDER BY i", [500])
        assert cursor.fetchone() == (501,)
        assert cursor.fetchmany(3) == [(502,), (503,), (504,)]
        assert [row[0] for row in cursor] == list(range(505, 1001))
        assert cursor.fetchone() is None
    # Two at once, and writes between the fetches.
    with connection.cursor("c2", scrollable=True) as two, connection.cursor("c3") as three:
        two.execute("SELECT i FROM p_cursor ORDER BY i")
        three.execute("SELECT -i FROM p_cursor ORDER BY i")
        for i in range(1, 10):
            assert two.fetchone() == (i,)
            assert three.fetchone() == (-i,)
            connection.execute("UPDATE p_cursor SET i = i WHERE i = %s", [i])
        two.scroll(0, "absolute")
        assert two.fetchone() == (1,)
        two.scroll(99)
        assert two.fetchone() == (101,)
    connection.commit()
    # In a READ ONLY transaction.
    connection.read_only = True
    with connection.cursor("c4") as cursor:
        cursor.execute("SELECT i FROM p_cursor ORDER BY i")
        assert len(cursor.fetchmany(10)) == 10
        assert len(cursor.fetchall()) == 990
    connection.commit()
    connection.read_only = None
    # WITH HOLD outlives its transaction.
    held = connection.cursor("c5", withhold=True)
    held.execute("SELECT i FROM p_cursor ORDER BY i")
    connection.commit()
    assert held.fetchmany(2) == [(1,), (2,)]
    connection.rollback()
    connection.autocommit = True
    assert len(held.fetchall()) == 998
    held.close()
    hold_in_autocommit = connection.cursor("c6", withhold=True)
    assert hold_in_autocommit.execute("SELECT 1").fetchall() == [(1,)]
    hold_in_autocommit.close()
    raises(errors.NoActiveSqlTransaction, connection.cursor("c7").execute, "SELECT 1")


@check
def rows_in_chunks(connection):
    cursor = connection.cursor()
    for size in (1, 100):
        got = [row[0] for row in cursor.stream("SELECT generate_series(1, 2000)", size=size)]
        assert got == list(range(1, 2001))


@check
def left_early():
    # The driver cancels what is left.
    with connect() as connection:
        cursor = connection.cursor()

        def left():
            with cursor.copy("COPY (SELECT generate_series(1, 10000000)) TO STDOUT") as copy:
                next(iter(copy))
                raise KeyError("left")

        raises(KeyError, left)
        assert connection.info.transaction_status == IDLE
        assert one(connection, "SELECT 1") == 1
        stream = cursor.stream("SELECT generate_series(1, 10000000)")
        assert next(stream) == (1,)
        stream.close()
        assert connection.info.transaction_status == IDLE
        assert one(connection, "SELECT 1") == 1


@check
def notifications(connection):
    with connect() as sender:
        connection.execute("LISTEN p_channel")
        connection.execute("NOTIFY p_channel, 'own'")
        sender.execute("SELECT pg_notify('p_channel', %s)", ["über"])
        with sender.transaction():
            sender.execute("NOTIFY p_channel, 'second'")
        with sender.transaction(force_rollback=True):
            sender.execute("NOTIFY p_channel, 'never'")
        sender.execute("NOTIFY p_other, 'never'")
        sender.execute("NOTIFY p_channel, 'last'")
        got = []
        while "last" not in got:
            found = list(connection.notifies(timeout=30, stop_after=1))
            assert found, got
            got.extend(notification.payload for notification in found)
        assert got == ["own", "über", "second", "last"], got
        connection.execute("UNLISTEN *")
        sender.execute("NOTIFY p_channel, 'late'")
        assert list(connection.notifies(timeout=0)) == []


@check
def notices(connection):
    seen = []

    def note(diag):
        seen.append((diag.severity, diag.message_primary))

    connection.add_notice_handler(note)
    connection.execute("DO $$ BEGIN RAISE NOTICE 'one'; RAISE WARNING 'two'; END $$")
    connection.execute("DROP TABLE IF EXISTS p_nothing")
    connection.execute("COMMIT")
    connection.remove_notice_handler(note)
    return seen


def run_until_cancelled(connection, query, cancel):
    """Cancels until the query has ended: a request may come before the query does."""
    ended = []

    def run():
        try:
            connection.execute(query)
            ended.append("ran to its end")
        except psycopg.Error as error:
            ended.append(error.sqlstate)

    thread = threading.Thread(target=run)
    thread.start()
    patience = 0.05
    while thread.is_alive():
        cancel()
        thread.join(patience)
        patience = 1
    assert ended == ["57014"], ended


@check
def cancel():
    heavy = "SELECT count(*) FROM generate_series(1, 100000) a, generate_series(1, 100000) b"
    # From protocol 3.2 on, which a server before 18 negotiates down, keys are long.
    for name, version in (("cancel_safe", "3.0"), ("cancel_safe", "latest"), ("cancel", "latest"), ("cancel", "3.0")):
        with connect(max_protocol_version=version) as connection:
            way = getattr(connection, name)
            for query in ("SELECT pg_sleep(60)", ON_PRIMARY + "SELECT pg_sleep(60)", heavy):
                run_until_cancelled(connection, query, way)
                assert connection.info.transaction_status == IDLE
                assert one(connection, "SELECT 1") == 1
            with connection.transaction():
                connection.execute("CREATE TEMP TABLE p_cancel (i int) ON COMMIT DROP")
                connection.execute("SAVEPOINT a")
                run_until_cancelled(connection, "SELECT pg_sleep(60)", way)
                assert connection.info.transaction_status == FAILED
                connection.execute("ROLLBACK TO a")
                assert one(connection, "SELECT count(*) FROM p_cancel") == 0


@check
def cancel_of_an_idle_session():
    # Whoever cancels waits until the request has been taken: what is sent afterwards must not be hit.
    with connect() as connection:
        connection.execute("SET application_name = 'pinned'")
        for way in (connection.cancel_safe, connection.cancel):
            for _ in range(50):
                way()
                connection.execute("SELECT pg_sleep(0.005)")


def prepared_over_the_limit(connection):
    table(connection, "p_prepared", "i int")
    connection.execute("INSERT INTO p_prepared VALUES (1)")
    rounds = (connection.prepare_threshold or 0) + 2
    for repeated in (rounds, 2):
        for number in range(130):
            query = f"SELECT i + {number} + %s FROM p_prepared"
            for _ in range(repeated):
                assert one(connection, query, [1]) == number + 2
        for number in range(20):
            for _ in range(repeated):
                connection.execute(f"UPDATE p_prepared SET i = i + {number} - %s", [number])
    # What psycopg prepared must not outlive what it stands for.
    connection.execute("ALTER TABLE p_prepared ADD j text DEFAULT 'x'")
    for _ in range(rounds):
        assert connection.execute("SELECT * FROM p_prepared").fetchall() == [(1, "x")]
    # In and out of transactions, and rolled back ones.
    connection.autocommit = False
    for number in range(20):
        for _ in range(rounds):
            assert one(connection, f"SELECT {number} + i FROM p_prepared WHERE i > %s", [0]) == number + 1
        connection.rollback() if number % 2 else connection.commit()
    connection.autocommit = True


@check
def prepared_at_once(connection):
    connection.prepare_threshold = 0
    prepared_over_the_limit(connection)
    connection.prepare_threshold = 5


@check
def prepared_by_default():
    with connect() as connection:
        assert connection.prepare_threshold == 5 and connection.prepared_max == 100
        prepared_over_the_limit(connection)


@check
def prepared_and_deallocated_in_sql(connection):
    # What psycopg does by itself where libpq is older than 17.
    pgconn = connection.pgconn
    for _ in range(2):
        assert pgconn.prepare(b"p_named", b"SELECT $1::int + 1").status == ExecStatus.COMMAND_OK
        assert pgconn.exec_prepared(b"p_named", [b"1"]).get_value(0, 0) == b"2"
        connection.execute("DEALLOCATE p_named")
    assert pgconn.exec_prepared(b"p_named", [b"1"]).error_field(DiagnosticField.SQLSTATE) == b"26000"


@check
def prepared_and_all_deallocated():
    with connect(prepare_threshold=0) as connection:
        for _ in range(3):
            assert one(connection, "SELECT %s::int + 1", [1]) == 2
            # psycopg forgets its own statements when it sees this tag.
            connection.execute("DEALLOCATE ALL")


@check
def prepared_in_sql(connection):
    connection.execute("PREPARE p_plan (int) AS SELECT $1 + 1")
    assert one(connection, "EXECUTE p_plan (1)") == 2
    raises(errors.DuplicatePreparedStatement, connection.execute, "PREPARE p_plan AS SELECT 1")
    connection.execute("DEALLOCATE p_plan")
    raises(errors.InvalidSqlStatementName, connection.execute, "EXECUTE p_plan (1)")


@check
def settings():
    with connect(options="-c statement_timeout=1000 -c search_path=p_schema,public") as connection:
        assert one(connection, "SHOW statement_timeout") == "1s"
        assert one(connection, "SELECT current_schemas(false)") == ["public"]
        for query in ("SELECT pg_sleep(60)", ON_PRIMARY + "SELECT pg_sleep(60)"):
            raises(errors.QueryCanceled, connection.execute, query)
        assert one(connection, "SELECT 1") == 1
    with connect(application_name="p p", options="-c TimeZone=Asia/Kathmandu -c DateStyle=SQL,DMY") as connection:
        report = [connection.info.parameter_status(name) for name in ("application_name", "TimeZone", "DateStyle")]
        shown = [one(connection, f"SHOW {name}") for name in ("application_name", "TimeZone", "DateStyle")]
        assert report == shown, (report, shown)
        assert one(connection, "SELECT '2024-01-31 00:00+00'::timestamptz::text") == "31/01/2024 05:45:00 +0545"
    with connect(client_encoding="latin1") as connection:
        assert connection.info.encoding == "iso8859-1"
        assert one(connection, "SELECT %s || U&'\\00fc'", ["ä"]) == "äü"
        raises(errors.UntranslatableCharacter, connection.execute, "SELECT U&'\\6771'")
        connection.execute("SET client_encoding TO utf8")
        assert one(connection, "SELECT U&'\\6771'") == "東"


@check
def search_path_as_given():
    with connect(options="-c search_path=p_schema,public") as connection:
        shown = one(connection, "SHOW search_path")
        assert shown == "p_schema,public", shown


@check
def application_name_beyond_ascii():
    with connect(application_name="ü") as connection:
        reported = connection.info.parameter_status("application_name")
        assert reported == one(connection, "SHOW application_name"), reported


@check
def settings_that_are_wrong():
    seen = []
    for arguments in (
        {"options": "-c nothing=1"},
        {"options": "-c work_mem=much"},
        {"dbname": "p_nothing"},
        {"password": "wrong"},
        {"user": "p_nothing"},
        {"client_encoding": "nothing"},
    ):
        error = raises(psycopg.OperationalError, connect, **arguments)
        seen.append((arguments, str(error).rsplit("failed: ", 1)[-1].strip()))
    return seen


@check
def set_in_a_session(connection):
    connection.execute("SET statement_timeout = '1s'")
    raises(errors.QueryCanceled, connection.execute, "SELECT pg_sleep(60)")
    connection.execute("RESET statement_timeout")
    assert one(connection, "SHOW statement_timeout") == "0"
    assert one(connection, "SELECT set_config('my.tenant', 'ü', false)") == "ü"
    assert one(connection, "SELECT current_setting('my.tenant')") == "ü"
    with connection.transaction():
        connection.execute("SET LOCAL work_mem = '99kB'")
        assert one(connection, "SELECT set_config('my.tenant', 'local', true)") == "local"
        assert one(connection, "SHOW work_mem") == "99kB"
    assert one(connection, "SHOW work_mem") != "99kB"
    assert one(connection, "SELECT current_setting('my.tenant')") == "ü"
    with connection.transaction(force_rollback=True):
        connection.execute("SET work_mem = '99kB'")
    assert one(connection, "SHOW work_mem") != "99kB"
    connection.execute("SET TIME ZONE 'Asia/Kathmandu'")
    assert connection.info.parameter_status("TimeZone") == "Asia/Kathmandu"
    assert connection.info.timezone.key == "Asia/Kathmandu"
    connection.execute("SET application_name = 'renamed'")
    assert connection.info.parameter_status("application_name") == "renamed"
    connection.execute("RESET ALL")
    connection.execute("DISCARD ALL")


@check
def temporary_objects(connection):
    with connection.transaction():
        connection.execute("CREATE TEMP TABLE p_temp ON COMMIT DELETE ROWS AS SELECT 1 AS i")
        assert one(connection, "SELECT count(*) FROM p_temp") == 1
    assert one(connection, "SELECT count(*) FROM p_temp") == 0
    connection.execute("DROP TABLE p_temp")
    connection.execute("CREATE TEMP TABLE p_temp (i int)")
    for i in range(20):
        connection.execute("INSERT INTO p_temp VALUES (%s)", [i])
        assert one(connection, "SELECT count(*) FROM p_temp") == i + 1
    connection.execute("CREATE TEMP SEQUENCE p_sequence")
    assert one(connection, "SELECT nextval('p_sequence')") == 1
    assert one(connection, "SELECT currval('p_sequence')") == 1
    connection.execute("SELECT count(*) AS n INTO TEMP p_into FROM p_temp")
    assert one(connection, "SELECT n FROM p_into") == 20
    connection.execute("DROP TABLE p_into, p_temp")
    connection.execute("DROP SEQUENCE p_sequence")


@check
def advisory_locks(connection):
    with connect() as other:
        connection.execute("SELECT pg_advisory_lock(4711)")
        for _ in range(5):
            assert one(other, "SELECT pg_try_advisory_lock(4711)") is False
        assert one(connection, "SELECT pg_advisory_unlock(4711)") is True
        assert one(other, "SELECT pg_try_advisory_lock(4711)") is True
        assert one(other, "SELECT pg_advisory_unlock(4711)") is True
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(4712)")
            assert one(other, "SELECT pg_try_advisory_xact_lock(4712)") is False
        assert one(other, "SELECT pg_try_advisory_xact_lock(4712)") is True


@check
def large_values(connection):
    value = os.urandom(1 << 20) * 10
    table(connection, "p_large", "b bytea, t text")
    text = "ü" * (5 << 20)
    for binary in (False, True):
        connection.execute("TRUNCATE p_large")
        placeholder = "%b" if binary else "%t"
        connection.execute(f"INSERT INTO p_large VALUES ({placeholder}, %s)", [value, text])
        got = connection.execute("SELECT b, t FROM p_large", binary=binary).fetchone()
        assert got == (value, text)
    assert one(connection, "SELECT length(%s)", [text]) == len(text)
    assert psycopg.ClientCursor(connection).execute("SELECT length(%s)", [text]).fetchone() == (len(text),)
    with connection.transaction():
        connection.execute("UPDATE p_large SET b = %s", [value])
        assert one(connection, "SELECT b = %s FROM p_large", [value]) is True


@check
def many_rows(connection):
    rows = connection.execute("SELECT i, 'row ' || i FROM generate_series(1, 100000) i").fetchall()
    assert (len(rows), rows[0], rows[-1]) == (100000, (1, "row 1"), (100000, "row 100000"))
    table(connection, "p_rows", "i int")
    connection.execute("INSERT INTO p_rows SELECT generate_series(1, 100000)")
    assert sum(row[0] for row in connection.execute("SELECT i FROM p_rows", binary=True)) == 5000050000


@check
def read_your_writes(connection):
    table(connection, "p_writes", "i int")
    for i in range(200):
        connection.execute("INSERT INTO p_writes VALUES (%s)", [i])
        assert connection.execute("SELECT count(*), max(i) FROM p_writes").fetchone() == (i + 1, i)
    # A new table at once, and one that is gone.
    for i in range(20):
        table(connection, "p_new", "i int")
        assert one(connection, "SELECT count(*) FROM p_new") == 0
        connection.execute("DROP TABLE p_new")
        raises(errors.UndefinedTable, connection.execute, "SELECT count(*) FROM p_new")


@check
def reads_of_all_kinds(connection):
    connection.execute("DROP TABLE IF EXISTS p_reads")
    connection.execute("CREATE TABLE p_reads AS SELECT i, repeat('ü', 500) AS t FROM generate_series(1, 1000) i")
    for i in range(1, 301):
        if i % 30 == 0:
            idle()
        assert one(connection, "SELECT count(*) FROM p_reads") == 1000
        assert connection.execute("SELECT i FROM p_reads WHERE i = %s", [i]).fetchall() == [(i,)]
        if i % 10 == 0:
            raises(errors.DivisionByZero, connection.execute, "SELECT 1/(i - %s) FROM p_reads", [i])
            raises(errors.UndefinedColumn, connection.execute, "SELECT nothing FROM p_reads")
        if i % 20 == 0:
            with connection.pipeline():
                cursors = [connection.execute("SELECT %s + i FROM p_reads WHERE i = 1", [n]) for n in range(5)]
                assert [cursor.fetchone()[0] for cursor in cursors] == [1, 2, 3, 4, 5]
            assert len(connection.execute("SELECT * FROM p_reads").fetchall()) == 1000
            with connection.cursor().copy("COPY (SELECT i FROM p_reads) TO STDOUT") as copy:
                assert len(list(copy.rows())) == 1000
        if i % 30 == 0:
            connection.execute("BEGIN READ ONLY")
            connection.execute("DECLARE p_reads_cursor CURSOR FOR SELECT i FROM p_reads ORDER BY i")
            assert len(connection.execute("FETCH 10 FROM p_reads_cursor").fetchall()) == 10
            connection.execute("SAVEPOINT a")
            raises(errors.UndefinedTable, connection.execute, "SELECT * FROM p_nothing")
            connection.execute("ROLLBACK TO a")
            assert len(connection.execute("FETCH ALL FROM p_reads_cursor").fetchall()) == 990
            connection.execute("COMMIT")


@check
def several_statements(connection):
    table(connection, "p_several", "i int PRIMARY KEY")
    cursor = connection.cursor()
    cursor.execute("INSERT INTO p_several VALUES (1); SELECT * FROM p_several; SELECT 'x' AS a, 'y' AS b")
    got = [cursor.statusmessage]
    while cursor.nextset():
        got.append(cursor.fetchall())
    assert got == ["INSERT 0 1", [(1,)], [("x", "y")]], got
    raises(errors.UniqueViolation, cursor.execute, "INSERT INTO p_several VALUES (2); INSERT INTO p_several VALUES (1)")
    assert one(connection, "SELECT count(*) FROM p_several") == 1
    cursor.execute("BEGIN; INSERT INTO p_several VALUES (2); COMMIT; BEGIN; INSERT INTO p_several VALUES (3); ROLLBACK")
    assert connection.info.transaction_status == IDLE
    assert one(connection, "SELECT count(*) FROM p_several") == 2
    cursor.execute("BEGIN; SELECT 1")
    assert connection.info.transaction_status == IN_TRANSACTION
    cursor.execute("COMMIT; SELECT 2")
    assert connection.info.transaction_status == IDLE
    raises(errors.SyntaxError, cursor.execute, "SELECT %s; SELECT 2", [1])


@check
def empty_queries(connection):
    for query in ("", ";", " -- nothing", "/* nothing */;;"):
        for parameters_given in (None, ()):
            cursor = connection.execute(query, parameters_given)
            assert cursor.pgresult.status == ExecStatus.EMPTY_QUERY
            assert cursor.description is None
        with connection.pipeline():
            connection.execute(query)
            connection.execute("SELECT 1")
    assert connection.info.transaction_status == IDLE


@check
def reconnect():
    pids = set()
    for i in range(20):
        with connect() as connection:
            assert one(connection, "SELECT %s::int", [i]) == i
            pids.add(connection.info.backend_pid)
        assert connection.closed
    assert len(pids) > 0
    # Left in a transaction: rolled back.
    left = connect(autocommit=False)
    left.execute("SELECT pg_advisory_xact_lock(4713)")
    left.close()
    with connect() as connection:
        connection.execute("SELECT pg_advisory_xact_lock(4713)")
    # Left with session state.
    left = connect()
    left.execute("SET work_mem = '77kB'")
    left.execute("SELECT pg_advisory_lock(4713)")
    left.close()
    with connect() as connection:
        connection.execute("SELECT pg_advisory_xact_lock(4713)")
        assert one(connection, "SHOW work_mem") != "77kB"


@check
def connections_in_threads():
    with connect() as connection:
        table(connection, "p_threads", "thread int, i int")
    problems = []

    def work(thread):
        try:
            with connect() as own:
                for i in range(50):
                    with own.transaction():
                        own.execute("INSERT INTO p_threads VALUES (%s, %s)", [thread, i])
                    got = one(own, "SELECT count(*) FROM p_threads WHERE thread = %s", [thread])
                    assert got == i + 1, (thread, i, got)
        except Exception as error:
            problems.append(repr(error))

    threads = [threading.Thread(target=work, args=[number]) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == [], problems


@check
def asynchronous_connections():
    async def work(number):
        connection = await psycopg.AsyncConnection.connect(URL, autocommit=True)
        async with connection:
            async with connection.transaction():
                cursor = await connection.execute("SELECT %s::int", [number])
                assert await cursor.fetchone() == (number,)
            sleeper = asyncio.create_task(connection.execute("SELECT pg_sleep(60)"))
            # The driver sends a cancel request when its task is cancelled.
            while not sleeper.done():
                await asyncio.wait([sleeper], timeout=0.05)
                sleeper.cancel()
            assert sleeper.cancelled() or isinstance(sleeper.exception(), errors.QueryCanceled)

    async def all_of_them():
        await asyncio.gather(*[work(number) for number in range(5)])

    asyncio.run(all_of_them())


def out_of_time(_signal, _frame):
    """Ends a check that hangs: its connections too, or the driver would wait for the server once more."""
    for connection in OPEN:
        if not connection.closed:
            with socket.socket(fileno=os.dup(connection.fileno())) as end:
                end.shutdown(socket.SHUT_RDWR)
    raise TimeoutError(f"no end within {BOUND} s")


def run(name, function, *arguments):
    OPEN[:] = arguments
    signal.alarm(BOUND)
    try:
        detail = function(*arguments)
        line = "ok" if detail is None else f"ok {detail!r}"
    except Exception as error:
        place = ""
        trace = error.__traceback__
        while trace:
            if trace.tb_frame.f_code.co_filename == __file__:
                place = f"line {trace.tb_lineno}"
            trace = trace.tb_next
        line = f"FAILED at {place}: {type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
    print(f"{name}: {' '.join(line.split())}", flush=True)


def main():
    signal.signal(signal.SIGALRM, out_of_time)
    takes_one = [function for function in CHECKS if inspect.signature(function).parameters]
    for function in CHECKS:
        if function in takes_one:
            connection = connect()
            run(function.__name__, function, connection)
            connection.close()
        else:
            run(function.__name__, function)
    connection = connect()
    for function in takes_one:
        run(f"{function.__name__} in one connection", function, connection)
        if connection.broken or connection.info.transaction_status != IDLE:
            # It must not be the next check's trouble.
            connection.close()
            connection = connect()


main()
