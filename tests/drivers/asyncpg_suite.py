"""What an application does with asyncpg, as checks that print one line each.

Connects to $DATABASE_URL, whoever answers there. Each check runs in a connection of its own, then those that take one
run again one after the other in a single connection. tests/drivers.rs compares the lines of two servers.
"""

import asyncio
import datetime
import decimal
import inspect
import io
import ipaddress
import json
import os
import uuid

import asyncpg

URL = os.environ["DATABASE_URL"]
# Where the server that answers must be the one that writes; a comment like any other where nobody reads it.
ON_PRIMARY = "/* pgsteer: target=primary */ "
# Seconds that a check may take.
BOUND = int(os.environ.get("CHECK_TIMEOUT", "30"))

CHECKS = []


def check(function):
    """Registers a check. One with a parameter gets a connection; what it returns is printed."""
    CHECKS.append(function)
    return function


async def connect(**arguments):
    return await asyncpg.connect(URL, **arguments)


async def raises(kind, awaitable):
    try:
        await awaitable
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


async def idle():
    """Pauses as applications do: any server that has caught up may answer what comes next."""
    await asyncio.sleep(0.15)


async def table(connection, name, columns):
    await connection.execute(f"DROP TABLE IF EXISTS {name}; CREATE TABLE {name} ({columns})")


@check
async def what_the_server_reports(connection):
    settings = connection.get_settings()
    names = "server_version server_encoding client_encoding TimeZone is_superuser session_authorization in_hot_standby"
    assert connection.get_server_pid() > 0
    return tuple(connection.get_server_version()), {name: getattr(settings, name, None) for name in names.split()}


@check
async def types_round_trip(connection):
    zone = datetime.timezone(datetime.timedelta(hours=-3))
    values = [
        ("int2", -32768),
        ("int4", 2**31 - 1),
        ("int8", -(2**63)),
        ("float4", 0.5),
        ("float8", 1.7976931348623157e308),
        ("numeric", decimal.Decimal("-12345678901234567890.000000000123456789")),
        ("text", "Ærøskøbing 東京 \U0001f418 ' \\ \" \t\n"),
        ("bytea", bytes(range(256))),
        ("bool", False),
        ("date", datetime.date(4, 2, 29)),
        ("time", datetime.time(23, 59, 59, 999999)),
        ("timestamp", datetime.datetime(1999, 12, 31, 23, 59, 59, 999999)),
        ("timestamptz", datetime.datetime(2024, 2, 29, 12, 0, 0, 1, tzinfo=zone)),
        ("interval", datetime.timedelta(days=-3, seconds=7, microseconds=1)),
        ("uuid", uuid.UUID("12345678-1234-5678-1234-567812345678")),
        ("inet", ipaddress.ip_interface("10.1.2.3/8")),
        ("json", json.dumps({"a": [1, None], "ü": "日本"})),
        ("jsonb", json.dumps({"a": 1})),
        ("int4[]", [1, None, 3]),
        ("text[]", ["a,b", '"', "", "NULL", "日本"]),
        ("int4[]", [[1, 2], [3, 4]]),
        ("int4range", asyncpg.Range(1, 5)),
        ("point", asyncpg.Point(1.5, -2)),
        ("bit(5)", asyncpg.BitString("10101")),
        ("int4", None),
        ("text", None),
    ]
    await table(connection, "a_types", ", ".join(f"c{i} {kind}" for i, (kind, _) in enumerate(values)))
    wanted = [value for _, value in values]
    placeholders = ", ".join(f"${i + 1}" for i in range(len(values)))
    await connection.execute(f"INSERT INTO a_types VALUES ({placeholders})", *wanted)
    for _ in range(3):
        assert list(await connection.fetchrow("SELECT * FROM a_types")) == wanted


@check
async def types_of_the_database(connection):
    # The driver looks up what it does not know, at once after it was created.
    for number in range(5):
        await connection.execute(
            "DROP TABLE IF EXISTS a_custom; DROP TYPE IF EXISTS a_pair, a_mood;"
            f"CREATE TYPE a_mood AS ENUM ('sad{number}', 'fröhlich');"
            "CREATE TYPE a_pair AS (n int, mood a_mood);"
            "CREATE TABLE a_custom (mood a_mood, pair a_pair, moods a_mood[])"
        )
        await connection.reload_schema_state()
        row = ("fröhlich", (number, f"sad{number}"), ["fröhlich", f"sad{number}"])
        await connection.execute("INSERT INTO a_custom VALUES ($1, $2, $3)", *row)
        assert tuple(await connection.fetchrow("SELECT * FROM a_custom")) == row
    await connection.set_type_codec("jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")
    document = {"ü": [1, {"b": None}]}
    assert await connection.fetchval("SELECT $1::jsonb", document) == document
    await connection.reset_type_codec("jsonb", schema="pg_catalog")


@check
async def parameters(connection):
    numbers = list(range(3000))
    query = "SELECT " + " + ".join(f"${i + 1}::int8" for i in numbers)
    assert await connection.fetchval(query, *numbers) == sum(numbers)
    rows = await connection.fetch("SELECT x FROM unnest($1::int[]) x WHERE x = ANY($2::int[])", [1, 2, 3], [2, 3])
    assert [row["x"] for row in rows] == [2, 3]
    assert await connection.fetchval("SELECT $1::text IS NULL", None) is True
    error = await raises(asyncpg.DataError, connection.fetchval("SELECT $1::int", "x"))
    assert "$1" in str(error)


@check
async def command_tags(connection):
    await table(connection, "a_tags", "i int")
    tags = []
    for query, arguments in (
        ("INSERT INTO a_tags SELECT generate_series(1, $1::int)", (5,)),
        ("UPDATE a_tags SET i = i + 1 WHERE i > $1", (2,)),
        ("DELETE FROM a_tags WHERE i = 1", ()),
        ("SELECT * FROM a_tags", ()),
        ("CREATE INDEX ON a_tags (i)", ()),
        ("SELECT 1; UPDATE a_tags SET i = 0", ()),
    ):
        tags.append(await connection.execute(query, *arguments))
    return tags


@check
async def transactions(connection):
    await table(connection, "a_transactions", "i int PRIMARY KEY")
    async with connection.transaction():
        await connection.execute("INSERT INTO a_transactions VALUES (1)")
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute("INSERT INTO a_transactions VALUES (2)")
    assert await connection.fetchval("SELECT count(*) FROM a_transactions") == 2
    await transaction.rollback()
    assert await connection.fetchval("SELECT count(*) FROM a_transactions") == 1
    for isolation in ("serializable", "repeatable_read", "read_committed", "read_uncommitted"):
        for readonly in (False, True):
            async with connection.transaction(isolation=isolation, readonly=readonly):
                assert await connection.fetchval("SELECT count(*) FROM a_transactions") == 1
                shown = await connection.fetchval("SHOW transaction_isolation")
                assert shown == isolation.replace("_", " "), shown
                if readonly:
                    failing = connection.execute("INSERT INTO a_transactions VALUES (3)")
                    savepoint = connection.transaction()
                    await savepoint.start()
                    await raises(asyncpg.ReadOnlySQLTransactionError, failing)
                    await savepoint.rollback()
                    assert await connection.fetchval("SELECT count(*) FROM a_transactions") == 1
    async with connection.transaction(isolation="serializable", readonly=True, deferrable=True):
        assert await connection.fetchval("SELECT count(*) FROM a_transactions") == 1


@check
async def savepoints(connection):
    await table(connection, "a_savepoints", "i int PRIMARY KEY")

    async def doubled():
        async with connection.transaction():
            await connection.execute("INSERT INTO a_savepoints VALUES (2)")
            await connection.execute("INSERT INTO a_savepoints VALUES (1)")

    async with connection.transaction():
        await connection.execute("INSERT INTO a_savepoints VALUES (1)")
        await raises(asyncpg.UniqueViolationError, doubled())
        assert connection.is_in_transaction()
        for i in range(10, 20):
            nested = connection.transaction()
            await nested.start()
            await connection.execute("INSERT INTO a_savepoints VALUES ($1)", i)
            await (nested.rollback() if i % 2 else nested.commit())
    got = await connection.fetchval("SELECT array_agg(i ORDER BY i) FROM a_savepoints")
    assert got == [1, 10, 12, 14, 16, 18], got


@check
async def errors(connection):
    await table(connection, "a_errors", "i int CONSTRAINT positive CHECK (i > 0)")
    seen = []
    for query, arguments in (
        ("SELEC 1", ()),
        ("SELECT * FROM a_nothing", ()),
        ("SELECT * FROM a_nothing WHERE i = $1", (1,)),
        ("SELECT 1/$1::int", (0,)),
        ("INSERT INTO a_errors VALUES ($1)", (-1,)),
        ("SELECT 100/(50 - i) FROM generate_series(1, $1::int) i", (100,)),
    ):
        for _ in range(2):
            error = await raises(asyncpg.PostgresError, connection.execute(query, *arguments))
            seen.append((error.sqlstate, str(error), error.position, error.constraint_name))
        transaction = connection.transaction()
        await transaction.start()
        assert await connection.fetchval("SELECT 1") == 1
        await raises(asyncpg.PostgresError, connection.execute(query, *arguments))
        await raises(asyncpg.InFailedSQLTransactionError, connection.fetchval("SELECT 1"))
        await transaction.rollback()
        assert await connection.fetchval("SELECT 1") == 1
    return seen


@check
async def executemany(connection):
    await table(connection, "a_many", "i int PRIMARY KEY, t text")
    rows = [(i, f"ü{i}") for i in range(5000)]
    await connection.executemany("INSERT INTO a_many VALUES ($1, $2)", rows)
    assert [tuple(row) for row in await connection.fetch("SELECT * FROM a_many ORDER BY i")] == rows
    # All or nothing.
    doubled = [(i, "x") for i in (10000, 10001, 1, 10002)]
    await raises(asyncpg.UniqueViolationError, connection.executemany("INSERT INTO a_many VALUES ($1, $2)", doubled))
    assert await connection.fetchval("SELECT count(*) FROM a_many") == 5000
    async with connection.transaction():
        await connection.executemany("UPDATE a_many SET t = $2 WHERE i = $1", [(i, "y") for i in range(100)])
    got = await connection.fetchmany("SELECT t FROM a_many WHERE i = $1", [(i,) for i in range(50)])
    assert [row["t"] for row in got] == ["y"] * 50


@check
async def copy(connection):
    await table(connection, "a_copy", "i int, t text, b bytea")
    rows = [(i, "tab\t ü 日本" if i % 2 else None, bytes([i % 256])) for i in range(20000)]
    assert await connection.copy_records_to_table("a_copy", records=rows) == "COPY 20000"
    assert [tuple(row) for row in await connection.fetch("SELECT * FROM a_copy ORDER BY i")] == rows
    out = io.BytesIO()
    assert await connection.copy_from_table("a_copy", output=out, format="csv") == "COPY 20000"
    await connection.execute("TRUNCATE a_copy")
    out.seek(0)
    assert await connection.copy_to_table("a_copy", source=out, format="csv") == "COPY 20000"
    assert await connection.fetchval("SELECT count(*) FROM a_copy") == 20000
    out = io.BytesIO()
    tag = await connection.copy_from_query("SELECT i FROM a_copy WHERE i < $1 ORDER BY i", 3, output=out)
    assert (tag, out.getvalue()) == ("COPY 3", b"0\n1\n2\n")
    bad = io.BytesIO(b"x\ty\tz\n" * 100000)
    await raises(asyncpg.InvalidTextRepresentationError, connection.copy_to_table("a_copy", source=bad))
    assert await connection.fetchval("SELECT count(*) FROM a_copy") == 20000
    failing = "SELECT 1/(i - 9000) FROM generate_series(1, 10000) i"
    await raises(asyncpg.DivisionByZeroError, connection.copy_from_query(failing, output=io.BytesIO()))
    async with connection.transaction():
        await connection.copy_records_to_table("a_copy", records=rows[:10])
        assert await connection.fetchval("SELECT count(*) FROM a_copy") == 20010


@check
async def copy_given_up():
    # The driver ends the COPY, and cancels it as well.
    connection = await connect()
    await table(connection, "a_given_up", "i int")

    async def broken():
        yield b"1\n"
        raise KeyError("given up")

    for _ in range(10):
        await raises(KeyError, connection.copy_to_table("a_given_up", source=broken()))
        assert await connection.fetchval("SELECT count(*) FROM a_given_up") == 0
    await connection.close()


@check
async def cursors(connection):
    await table(connection, "a_cursor", "i int")
    await connection.execute("INSERT INTO a_cursor SELECT generate_series(1, 1000)")
    async with connection.transaction():
        got = [row["i"] async for row in connection.cursor("SELECT i FROM a_cursor ORDER BY i", prefetch=7)]
        assert got == list(range(1, 1001))
        one = await connection.cursor("SELECT i FROM a_cursor WHERE i > $1 ORDER BY i", 500)
        two = await connection.cursor("SELECT -i AS i FROM a_cursor ORDER BY -i")
        for number in range(1, 20):
            assert (await one.fetchrow())["i"] == 500 + number
            assert (await two.fetchrow())["i"] == number - 1001
            await connection.execute("UPDATE a_cursor SET i = i WHERE i = $1", number)
        assert await one.forward(10) == 10
        assert (await one.fetch(2))[0]["i"] == 530
        statement = await connection.prepare("SELECT i FROM a_cursor ORDER BY i")
        prepared = [row["i"] async for row in statement.cursor(prefetch=100)]
        assert prepared == list(range(1, 1001))
    async with connection.transaction(readonly=True):
        cursor = await connection.cursor("SELECT i FROM a_cursor ORDER BY i")
        assert len(await cursor.fetch(10)) == 10
        assert len(await cursor.fetch(2000)) == 990


@check
async def notifications(connection):
    got = asyncio.Queue()

    def heard(_connection, _pid, channel, payload):
        got.put_nowait((channel, payload))

    sender = await connect()
    await connection.add_listener("a_channel", heard)
    await connection.execute("NOTIFY a_channel, 'own'")
    await sender.execute("SELECT pg_notify('a_channel', $1)", "über")
    async with sender.transaction():
        await sender.execute("NOTIFY a_channel, 'second'")
    await sender.execute("NOTIFY a_other, 'never'")
    await sender.execute("NOTIFY a_channel, 'last'")
    payloads = []
    while not payloads or payloads[-1][1] != "last":
        payloads.append(await got.get())
    assert payloads == [("a_channel", payload) for payload in ("own", "über", "second", "last")], payloads
    await connection.remove_listener("a_channel", heard)
    await sender.execute("NOTIFY a_channel, 'late'")
    assert await connection.fetchval("SELECT 1") == 1
    assert got.empty()
    await sender.close()


@check
async def timeouts():
    # The driver sends a cancel request by itself and waits for its effect. One that comes before its query is lost:
    # then the server's own limit ends the query.
    connection = await connect(server_settings={"statement_timeout": "3000", "jit": "off"})
    clock = asyncio.get_running_loop().time
    heavy = "SELECT count(*) FROM generate_series(1, 100000) a, generate_series(1, 100000) b"
    for query in ("SELECT pg_sleep(60)", ON_PRIMARY + "SELECT pg_sleep(60)", heavy):
        took = []
        for _ in range(5):
            began = clock()
            await raises(TimeoutError, connection.fetch(query, timeout=0.05))
            assert await connection.fetchval("SELECT 1") == 1
            took.append(clock() - began)
        assert min(took) < 2, took
    # A task that is cancelled.
    task = asyncio.create_task(connection.fetch("SELECT pg_sleep(60)"))
    await asyncio.wait([task], timeout=0.05)
    task.cancel()
    await raises(asyncio.CancelledError, task)
    assert await connection.fetchval("SELECT 1") == 1
    await connection.close()


@check
async def timeouts_in_transactions():
    # In a session that keeps its server too: the statement that follows must not be hit.
    connection = await connect(server_settings={"statement_timeout": "3000"})
    await connection.execute("CREATE TEMP TABLE a_timeout (i int)")
    for _ in range(10):
        async with connection.transaction():
            nested = connection.transaction()
            await nested.start()
            await raises(TimeoutError, connection.execute("SELECT pg_sleep(60)", timeout=0.05))
            await nested.rollback()
            assert await connection.fetchval("SELECT count(*) FROM a_timeout") == 0
    await connection.close()


@check
async def statement_cache():
    connection = await connect()
    await table(connection, "a_cache", "i int")
    await connection.execute("INSERT INTO a_cache VALUES (1)")
    for _ in range(2):
        for number in range(150):
            assert await connection.fetchval(f"SELECT i + {number} + $1 FROM a_cache", 1) == number + 2
        for number in range(120):
            await connection.execute(f"UPDATE a_cache SET i = i + {number} - $1", number)
    # What was cached is out of date. (In a session that keeps its server: on another one the statement is prepared anew, and
    # whether the old one is refused is chance; see the README, "What it does not do yet".)
    await connection.execute("CREATE TEMP TABLE a_cache_keeps (i int)")
    await connection.fetch("SELECT * FROM a_cache")
    await connection.execute("ALTER TABLE a_cache ADD j text DEFAULT 'x'")
    assert tuple(await connection.fetchrow("SELECT * FROM a_cache")) == (1, "x")
    await connection.close()
    for arguments in ({"statement_cache_size": 0}, {"statement_cache_size": 3}):
        connection = await connect(**arguments)
        for number in range(20):
            assert await connection.fetchval(f"SELECT {number % 5} + $1::int", number) == number % 5 + number
        await connection.close()


@check
async def prepared_statements(connection):
    read = await connection.prepare("SELECT $1::int + 1 AS n")
    assert [(a.name, a.type.name) for a in read.get_attributes()] == [("n", "int4")]
    assert [parameter.name for parameter in read.get_parameters()] == ["int4"]
    await table(connection, "a_prepared", "i int")
    write = await connection.prepare("INSERT INTO a_prepared VALUES ($1) RETURNING i")
    for number in range(20):
        assert await read.fetchval(number) == number + 1
        assert await write.fetchval(number) == number
        async with connection.transaction():
            assert await write.fetchval(number) == number
            assert await read.fetchval(number) == number + 1
    assert await connection.fetchval("SELECT count(*) FROM a_prepared") == 40
    named = await connection.prepare("SELECT 'named'", name="a_named")
    assert await named.fetchval() == "named"


@check
async def prepared_statements_that_were_discarded():
    for command in ("DISCARD ALL", "DEALLOCATE ALL"):
        connection = await connect()
        statement = await connection.prepare("SELECT 'discarded'")
        assert await statement.fetchval() == "discarded"
        await connection.execute(command)
        await raises(asyncpg.InvalidSQLStatementNameError, statement.fetchval())
        await connection.close()


@check
async def settings():
    server_settings = {"statement_timeout": "60000", "application_name": "a a", "search_path": "a_schema,public"}
    connection = await connect(server_settings=server_settings)
    for name, value in (("statement_timeout", "1min"), ("application_name", "a a")):
        assert await connection.fetchval(f"SHOW {name}") == value
    assert await connection.fetchval("SELECT current_schemas(false)") == ["public"]
    await connection.close()
    # Nothing that is to succeed runs under a time-out that a busy machine may exceed.
    connection = await connect(server_settings={"statement_timeout": "1000"})
    for query in ("SELECT pg_sleep(60)", ON_PRIMARY + "SELECT pg_sleep(60)"):
        await raises(asyncpg.QueryCanceledError, connection.fetch(query))
    await connection.close()
    seen = []
    for arguments in (
        {"server_settings": {"nothing": "1"}},
        {"server_settings": {"work_mem": "much"}},
        {"database": "a_nothing"},
        {"password": "wrong"},
        {"user": "a_nothing"},
    ):
        error = await raises(asyncpg.PostgresError, connect(**arguments))
        seen.append((type(error).__name__, error.sqlstate, str(error)))
    return seen


@check
async def settings_reset():
    # RESET goes back to what the connection began with.
    for command in ("RESET statement_timeout", "RESET ALL", "DISCARD ALL", "SET statement_timeout TO DEFAULT"):
        connection = await connect(server_settings={"statement_timeout": "50000"}, statement_cache_size=0)
        await connection.execute("SET statement_timeout = 0")
        assert await connection.fetchval("SHOW statement_timeout") == "0"
        await connection.execute(command)
        assert await connection.fetchval("SHOW statement_timeout") == "50s", command
        await connection.close()
    async with asyncpg.create_pool(URL, min_size=1, max_size=1, server_settings={"work_mem": "99kB"}) as connections:
        for _ in range(2):
            assert await connections.fetchval("SHOW work_mem") == "99kB"


@check
async def session_state(connection):
    await connection.execute("SET statement_timeout = '1s'")
    await raises(asyncpg.QueryCanceledError, connection.fetch("SELECT pg_sleep(60)"))
    await connection.execute("SET statement_timeout = 0")
    assert await connection.fetchval("SELECT set_config('my.tenant', $1, false)", "ü") == "ü"
    assert await connection.fetchval("SELECT current_setting('my.tenant')") == "ü"
    await connection.execute("SET TIME ZONE 'Asia/Kathmandu'")
    assert connection.get_settings().TimeZone == "Asia/Kathmandu"
    await connection.execute("CREATE TEMP TABLE a_temp (i int)")
    for number in range(10):
        await connection.execute("INSERT INTO a_temp VALUES ($1)", number)
        assert await connection.fetchval("SELECT count(*) FROM a_temp") == number + 1
    other = await connect()
    await connection.execute("SELECT pg_advisory_lock(4811)")
    assert await other.fetchval("SELECT pg_try_advisory_lock(4811)") is False
    # What a pool runs when a connection is given back.
    await connection.reset()
    assert await connection.fetchval("SHOW TimeZone") != "Asia/Kathmandu"
    assert await other.fetchval("SELECT pg_try_advisory_lock(4811)") is True
    await other.close()
    await connection.execute("DROP TABLE a_temp")


@check
async def pool():
    async with asyncpg.create_pool(URL, min_size=2, max_size=5) as connections:
        await connections.execute("DROP TABLE IF EXISTS a_pool; CREATE TABLE a_pool (worker int, i int)")

        async def work(worker):
            for i in range(20):
                async with connections.acquire() as connection:
                    async with connection.transaction():
                        await connection.execute("INSERT INTO a_pool VALUES ($1, $2)", worker, i)
                    got = await connection.fetchval("SELECT count(*) FROM a_pool WHERE worker = $1", worker)
                    assert got == i + 1, (worker, i, got)

        await asyncio.gather(*[work(worker) for worker in range(10)])
        # What others have committed may come late where a standby answers.
        assert await connections.fetchval(ON_PRIMARY + "SELECT count(*) FROM a_pool") == 200
        async with connections.acquire() as connection:
            await connection.execute("SET work_mem = '77kB'")
        for _ in range(5):
            assert await connections.fetchval("SHOW work_mem") != "77kB"


@check
async def large_values(connection):
    value = os.urandom(1 << 20) * 10
    text = "ü" * (5 << 20)
    await table(connection, "a_large", "b bytea, t text")
    await connection.execute("INSERT INTO a_large VALUES ($1, $2)", value, text)
    assert tuple(await connection.fetchrow("SELECT b, t FROM a_large")) == (value, text)
    assert await connection.fetchval("SELECT $1::bytea", value) == value
    assert await connection.fetchval(f"SELECT length('{text}')") == len(text)
    await connection.copy_records_to_table("a_large", records=[(value, text)])
    assert await connection.fetchval("SELECT count(DISTINCT (b, t)) FROM a_large") == 1


@check
async def many_rows(connection):
    rows = await connection.fetch("SELECT i, 'row ' || i AS t FROM generate_series(1, 100000) i")
    assert (len(rows), tuple(rows[0]), tuple(rows[-1])) == (100000, (1, "row 1"), (100000, "row 100000"))
    await table(connection, "a_rows", "i int")
    await connection.execute("INSERT INTO a_rows SELECT generate_series(1, 100000)")
    assert sum(row["i"] for row in await connection.fetch("SELECT i FROM a_rows")) == 5000050000


@check
async def read_your_writes(connection):
    await table(connection, "a_writes", "i int")
    for i in range(200):
        await connection.execute("INSERT INTO a_writes VALUES ($1)", i)
        assert tuple(await connection.fetchrow("SELECT count(*), max(i) FROM a_writes")) == (i + 1, i)


@check
async def reads_of_all_kinds(connection):
    rows = "SELECT i, repeat('ü', 500) AS t FROM generate_series(1, 1000) i"
    await connection.execute(f"DROP TABLE IF EXISTS a_reads; CREATE TABLE a_reads AS {rows}")
    for i in range(1, 301):
        if i % 30 == 0:
            await idle()
        assert await connection.fetchval("SELECT count(*) FROM a_reads") == 1000
        assert await connection.fetchval("SELECT i FROM a_reads WHERE i = $1", i) == i
        if i % 10 == 0:
            failing = connection.fetch("SELECT 1/(i - $1) FROM a_reads", i)
            await raises(asyncpg.DivisionByZeroError, failing)
            await raises(asyncpg.UndefinedColumnError, connection.fetch("SELECT nothing FROM a_reads"))
        if i % 20 == 0:
            assert len(await connection.fetch("SELECT * FROM a_reads")) == 1000
            out = io.BytesIO()
            assert await connection.copy_from_table("a_reads", output=out) == "COPY 1000"
        if i % 30 == 0:
            async with connection.transaction(readonly=True):
                cursor = await connection.cursor("SELECT i FROM a_reads ORDER BY i")
                assert len(await cursor.fetch(10)) == 10
                nested = connection.transaction()
                await nested.start()
                await raises(asyncpg.UndefinedTableError, connection.fetch("SELECT * FROM a_nothing"))
                await nested.rollback()
                assert len(await cursor.fetch(2000)) == 990


@check
async def several_statements(connection):
    await table(connection, "a_several", "i int PRIMARY KEY")
    assert await connection.execute("INSERT INTO a_several VALUES (1); SELECT 1") == "SELECT 1"
    script = "INSERT INTO a_several VALUES (2); INSERT INTO a_several VALUES (1)"
    await raises(asyncpg.UniqueViolationError, connection.execute(script))
    assert await connection.fetchval("SELECT count(*) FROM a_several") == 1
    await connection.execute("BEGIN; INSERT INTO a_several VALUES (2); COMMIT")
    assert await connection.fetchval("SELECT count(*) FROM a_several") == 2
    for empty in ("", ";", "-- nothing"):
        assert await connection.fetch(empty) == []
    assert await connection.fetchval("SELECT 1") == 1


@check
async def reconnect():
    for i in range(20):
        connection = await connect()
        assert await connection.fetchval("SELECT $1::int", i) == i
        await connection.close()
    left = await connect()
    await left.execute("BEGIN")
    await left.execute("SELECT pg_advisory_xact_lock(4812)")
    left.terminate()
    connection = await connect()
    assert await connection.fetchval("SELECT pg_advisory_xact_lock(4812)::text") == ""
    await connection.close()


async def run(name, function, *arguments):
    try:
        detail = await asyncio.wait_for(function(*arguments), BOUND)
        line = "ok" if detail is None else f"ok {detail!r}"
    except (Exception, asyncio.CancelledError) as error:
        place = ""
        trace = error.__traceback__
        while trace:
            if trace.tb_frame.f_code.co_filename == __file__:
                place = f"line {trace.tb_lineno}"
            trace = trace.tb_next
        line = f"FAILED at {place}: {type(error).__name__}: {error}"
    print(f"{name}: {' '.join(line.split())}", flush=True)
    return line.startswith("ok")


async def main():
    takes_one = [function for function in CHECKS if inspect.signature(function).parameters]
    for function in CHECKS:
        if function in takes_one:
            connection = await connect()
            await run(function.__name__, function, connection)
            connection.terminate()
        else:
            await run(function.__name__, function)
    connection = await connect()
    for function in takes_one:
        if not await run(f"{function.__name__} in one connection", function, connection):
            # It must not be the next check's trouble.
            connection.terminate()
            connection = await connect()
    connection.terminate()


asyncio.run(main())
