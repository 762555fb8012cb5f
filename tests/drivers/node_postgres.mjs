// What an application does with node-postgres, pg-cursor and pg-copy-streams, as checks that print one line each.
//
// Connects to $DATABASE_URL, whoever answers there; the packages are those of the working directory. Each check runs in
// a connection of its own, then those that take one run again one after the other in a single connection.
// tests/drivers.rs compares the lines of two servers.

import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { createRequire } from "node:module";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { setTimeout as pause } from "node:timers/promises";

const packages = createRequire(`${process.cwd()}/`);
const pg = packages("pg");
const Cursor = packages("pg-cursor");
const copyStreams = packages("pg-copy-streams");

const URL_ = process.env.DATABASE_URL;
// Where the server that answers must be the one that writes; a comment like any other where nobody reads it.
const ON_PRIMARY = "/* pgsteer: target=primary */ ";
// Milliseconds that a check may take.
const BOUND = Number(process.env.CHECK_TIMEOUT ?? "30") * 1000;

const checks = [];
const check = (name, run) => checks.push({ name, run });

async function connect(config = {}) {
  const client = new pg.Client({ connectionString: URL_, ...config });
  // The end of a connection shows in its next query.
  client.on("error", () => {});
  await client.connect();
  return client;
}

const rows = async (client, query, values) =>
  (await client.query({ text: query, values, rowMode: "array" })).rows;
const one = async (client, query, values) => (await rows(client, query, values))[0][0];
const table = (client, name, columns) =>
  client.query(`DROP TABLE IF EXISTS ${name}; CREATE TABLE ${name} (${columns})`);

async function fails(code, promise) {
  const error = await promise.then(
    () => assert.fail(`no ${code}`),
    (error) => error,
  );
  assert.equal(error.code, code, error.stack);
  return error;
}

check("what_the_server_reports", async (client) => {
  const reported = {};
  const other = new pg.Client({ connectionString: URL_ });
  other.connection.on("parameterStatus", ({ parameterName, parameterValue }) => {
    reported[parameterName] = parameterValue;
  });
  await other.connect();
  assert.ok(other.processID !== null);
  await other.end();
  await client.query("SELECT 1");
  return Object.entries(reported).sort();
});

check("types_round_trip", async (client) => {
  const values = [
    ["int2", -32768],
    ["int4", 2147483647],
    ["int8", "-9223372036854775808"],
    ["float8", 1.7976931348623157e308],
    ["numeric", "-12345678901234567890.000000000123456789"],
    ["text", "Ærøskøbing 東京 \u{1f418} ' \\ \" \t\n"],
    ["bytea", Buffer.from(Array.from({ length: 256 }, (_, i) => i))],
    ["bool", true],
    ["timestamptz", new Date("2024-02-29T12:00:00.001Z")],
    ["uuid", "12345678-1234-5678-1234-567812345678"],
    ["json", { a: [1, 2.5, null], ü: "日本" }],
    ["jsonb", { b: { c: [] } }],
    ["int4[]", [1, null, 3]],
    ["text[]", ["a,b", '"', "", "NULL", "日本"]],
    ["int4[]", [[1, 2], [3, 4]]],
    ["text", null],
  ];
  await table(client, "n_types", values.map(([kind], i) => `c${i} ${kind}`).join(", "));
  const placeholders = values.map((_, i) => `$${i + 1}`).join(", ");
  const wanted = values.map(([, value]) => value);
  await client.query(`INSERT INTO n_types VALUES (${placeholders})`, wanted);
  for (const name of [undefined, "n_types_read"]) {
    for (let i = 0; i < 2; i++) {
      const result = await client.query({ name, text: "SELECT * FROM n_types", rowMode: "array" });
      assert.deepEqual(result.rows, [wanted]);
    }
  }
});

check("parameters", async (client) => {
  const numbers = Array.from({ length: 3000 }, (_, i) => i);
  const query = "SELECT " + numbers.map((i) => `$${i + 1}::int8`).join(" + ");
  assert.equal(await one(client, query, numbers), "4498500");
  assert.equal(await one(client, "SELECT $1::text IS NULL", [null]), true);
  const some = await rows(client, "SELECT x FROM unnest($1::int[]) x WHERE x = ANY($2)", [[1, 2, 3], [2, 3]]);
  assert.deepEqual(some, [[2], [3]]);
  await fails("22P02", client.query("SELECT $1::int", ["x"]));
  await fails("08P01", client.query("SELECT $1::int, $2::int", [1]));
  assert.equal(await one(client, "SELECT 1"), 1);
});

check("command_tags", async (client) => {
  await table(client, "n_tags", "i int");
  const tags = [];
  for (const query of [
    "INSERT INTO n_tags SELECT generate_series(1, 5)",
    "UPDATE n_tags SET i = i + 1 WHERE i > 2",
    "DELETE FROM n_tags WHERE i = 1",
    "SELECT * FROM n_tags",
    "CREATE INDEX ON n_tags (i)",
    "SHOW search_path",
    "COMMENT ON TABLE n_tags IS 'x'",
  ]) {
    for (const values of [undefined, []]) {
      const result = await client.query({ text: query, values, queryMode: values && "extended" });
      tags.push([result.command, result.rowCount, result.fields.map((field) => field.name)]);
    }
  }
  return tags;
});

check("transactions", async (client) => {
  await table(client, "n_transactions", "i int PRIMARY KEY");
  await client.query("BEGIN");
  await client.query("INSERT INTO n_transactions VALUES ($1)", [1]);
  await client.query("COMMIT");
  await client.query("BEGIN");
  await client.query("INSERT INTO n_transactions VALUES (2)");
  assert.equal(await one(client, "SELECT count(*) FROM n_transactions"), "2");
  await client.query("ROLLBACK");
  assert.equal(await one(client, "SELECT count(*) FROM n_transactions"), "1");
  for (const begin of ["BEGIN ISOLATION LEVEL SERIALIZABLE", "START TRANSACTION READ ONLY", "begin read only"]) {
    assert.equal((await client.query(begin)).command, begin.split(" ")[0].toUpperCase());
    assert.equal(await one(client, "SELECT count(*) FROM n_transactions"), "1");
    await client.query("COMMIT");
  }
});

check("savepoints_and_errors", async (client) => {
  await table(client, "n_savepoints", "i int PRIMARY KEY");
  await client.query("BEGIN");
  await client.query("INSERT INTO n_savepoints VALUES (1)");
  await client.query("SAVEPOINT a");
  const error = await fails("23505", client.query("INSERT INTO n_savepoints VALUES ($1)", [1]));
  assert.equal(error.constraint, "n_savepoints_pkey");
  await fails("25P02", client.query("SELECT 1"));
  await client.query("ROLLBACK TO a");
  await client.query("INSERT INTO n_savepoints VALUES (2)");
  await client.query("RELEASE a");
  await client.query("COMMIT");
  assert.equal(await one(client, "SELECT count(*) FROM n_savepoints"), "2");
  await client.query("BEGIN");
  await client.query("DELETE FROM n_savepoints");
  await fails("22012", client.query("SELECT 1/$1::int", [0]));
  assert.equal((await client.query("COMMIT")).command, "ROLLBACK");
  assert.equal(await one(client, "SELECT count(*) FROM n_savepoints"), "2");
});

check("errors", async (client) => {
  const seen = [];
  for (const query of [
    "SELEC 1",
    "SELECT * FROM n_nothing",
    "SELECT 1/0",
    "SELECT 100/(50 - i) FROM generate_series(1, 100) i",
  ]) {
    for (const queryMode of [undefined, "extended"]) {
      const error = await client.query({ text: query, queryMode }).catch((error) => error);
      seen.push([error.code, error.message, error.position, error.severity, error.routine]);
      assert.equal(await one(client, "SELECT 1"), 1);
    }
  }
  return seen;
});

check("queued_queries", async (client) => {
  await table(client, "n_queued", "i int PRIMARY KEY");
  // All are queued at once, writes and reads of them in turn, with one error among them.
  const queries = [];
  for (let i = 0; i < 300; i++) {
    queries.push(client.query("INSERT INTO n_queued VALUES ($1)", [i]));
    queries.push(one(client, "SELECT count(*) FROM n_queued WHERE i <= $1", [i]));
    if (i === 150) queries.push(fails("23505", client.query("INSERT INTO n_queued VALUES (1)")));
  }
  const results = await Promise.all(queries);
  const counted = results.filter((result) => typeof result === "string");
  assert.deepEqual(counted, Array.from({ length: 300 }, (_, i) => String(i + 1)));
});

check("pipelined_queries", async () => {
  // Without waiting for answers, where the driver knows how.
  const client = await connect({ pipelining: true });
  await table(client, "n_pipelined", "i int PRIMARY KEY");
  const queries = [];
  for (let i = 0; i < 200; i++) {
    queries.push(client.query("INSERT INTO n_pipelined VALUES ($1)", [i]));
    queries.push(one(client, "SELECT count(*) FROM n_pipelined"));
    if (i === 100) queries.push(fails("22012", client.query("SELECT 1/$1::int", [0])));
  }
  const results = await Promise.all(queries);
  const counted = results.filter((result) => typeof result === "string");
  assert.deepEqual(counted, Array.from({ length: 200 }, (_, i) => String(i + 1)));
  await client.end();
});

check("named_statements", async (client) => {
  await table(client, "n_named", "i int");
  for (let round = 0; round < 2; round++) {
    for (let i = 0; i < 150; i++) {
      const result = await client.query({ name: `n_read_${i}`, text: `SELECT ${i} + $1::int AS n`, values: [round] });
      assert.equal(result.rows[0].n, i + round);
    }
    for (let i = 0; i < 50; i++) {
      await client.query({ name: `n_write_${i}`, text: `INSERT INTO n_named SELECT ${i} + $1::int`, values: [round] });
    }
  }
  assert.equal(await one(client, "SELECT count(*) FROM n_named"), "100");
  // The first use fails, and it is prepared again.
  await fails("42P01", client.query({ name: "n_late", text: "SELECT * FROM n_late" }));
  await table(client, "n_late", "i int");
  assert.deepEqual((await client.query({ name: "n_late", text: "SELECT * FROM n_late" })).rows, []);
  await client.query("DROP TABLE n_late");
});

check("cursors", async (client) => {
  await table(client, "n_cursor", "i int");
  await client.query("INSERT INTO n_cursor SELECT generate_series(1, 1000)");
  // Read to the end in parts.
  for (const values of [[0], [500]]) {
    const query = "SELECT i FROM n_cursor WHERE i > $1 ORDER BY i";
    const cursor = client.query(new Cursor(query, values, { rowMode: "array" }));
    const got = [];
    for (let part = await cursor.read(7); part.length > 0; part = await cursor.read(7)) got.push(...part.flat());
    assert.deepEqual(got, Array.from({ length: 1000 - values[0] }, (_, i) => i + 1 + values[0]));
    await cursor.close();
  }
  // Closed after a part, with other queries behind it.
  for (let i = 0; i < 5; i++) {
    const cursor = client.query(new Cursor("SELECT i FROM n_cursor ORDER BY i"));
    const behind = one(client, "SELECT count(*) FROM n_cursor");
    assert.equal((await cursor.read(3)).length, 3);
    await cursor.close();
    assert.equal(await behind, "1000");
    await client.query("INSERT INTO n_cursor VALUES (0)");
    await client.query("DELETE FROM n_cursor WHERE i = 0");
  }
  // Without a table, and of a write.
  const numbers = client.query(new Cursor("SELECT generate_series(1, 10) AS n"));
  assert.equal((await numbers.read(100)).length, 10);
  assert.equal((await numbers.read(100)).length, 0);
  await numbers.close();
  const written = client.query(new Cursor("INSERT INTO n_cursor VALUES (-1), (-2), (-3) RETURNING i"));
  assert.equal((await written.read(2)).length, 2);
  assert.equal((await written.read(2)).length, 1);
  await written.close();
  assert.equal(await one(client, "SELECT count(*) FROM n_cursor WHERE i < 0"), "3");
  // In a transaction, two statements in turn.
  await client.query("BEGIN");
  const inside = client.query(new Cursor("SELECT i FROM n_cursor ORDER BY i"));
  assert.equal((await inside.read(10)).length, 10);
  await inside.close();
  await client.query("DELETE FROM n_cursor");
  await client.query("ROLLBACK");
  assert.equal(await one(client, "SELECT count(*) FROM n_cursor"), "1003");
  // An error at once, and one after rows.
  await fails("42P01", client.query(new Cursor("SELECT * FROM n_nothing")).read(1));
  assert.equal(await one(client, "SELECT 1"), 1);
  const failing = client.query(new Cursor("SELECT 1/(i - 5) FROM generate_series(1, 10) i"));
  assert.equal((await failing.read(2)).length, 2);
  await fails("22012", failing.read(100));
  assert.equal(await one(client, "SELECT 1"), 1);
});

check("copy", async (client) => {
  await table(client, "n_copy", "i int, t text");
  const lines = Array.from({ length: 20000 }, (_, i) => `${i}\tü 日本 ${i}\n`);
  await pipeline(Readable.from(lines), client.query(copyStreams.from("COPY n_copy FROM STDIN")));
  assert.equal(await one(client, "SELECT count(*) FROM n_copy"), "20000");
  const out = client.query(copyStreams.to("COPY (SELECT * FROM n_copy ORDER BY i) TO STDOUT"));
  const parts = [];
  for await (const part of out) parts.push(part);
  assert.equal(Buffer.concat(parts).toString(), lines.join(""));
  await fails("22P02", pipeline(Readable.from(["x\ty\n"]), client.query(copyStreams.from("COPY n_copy FROM STDIN"))));
  assert.equal(await one(client, "SELECT count(*) FROM n_copy"), "20000");
  await client.query("BEGIN");
  await pipeline(Readable.from(["1\tx\n"]), client.query(copyStreams.from("COPY n_copy FROM STDIN")));
  await client.query("ROLLBACK");
  assert.equal(await one(client, "SELECT count(*) FROM n_copy"), "20000");
});

check("notifications", async (client) => {
  const sender = await connect();
  const got = [];
  const last = new Promise((resolve) => {
    client.on("notification", ({ channel, payload }) => {
      got.push([channel, payload]);
      if (payload === "last") resolve();
    });
  });
  await client.query("LISTEN n_channel");
  await client.query("NOTIFY n_channel, 'own'");
  await sender.query("SELECT pg_notify('n_channel', $1)", ["über"]);
  await sender.query("BEGIN; NOTIFY n_channel, 'second'; COMMIT");
  await sender.query("NOTIFY n_other, 'never'");
  await sender.query("NOTIFY n_channel, 'last'");
  await last;
  assert.deepEqual(got, ["own", "über", "second", "last"].map((payload) => ["n_channel", payload]));
  client.removeAllListeners("notification");
  await client.query("UNLISTEN n_channel");
  await sender.end();
});

check("notices", async (client) => {
  const seen = [];
  client.on("notice", ({ severity, message }) => seen.push([severity, message]));
  await client.query("DO $$ BEGIN RAISE NOTICE 'one'; RAISE WARNING 'two'; END $$");
  await client.query("DROP TABLE IF EXISTS n_nothing");
  client.removeAllListeners("notice");
  return seen;
});

check("settings", async () => {
  for (const config of [
    { statement_timeout: 1000 },
    { options: "-c statement_timeout=1000" },
    { statement_timeout: 1000, options: "-c search_path=n_schema,public", application_name: "n n", lock_timeout: 7000 },
  ]) {
    const client = await connect(config);
    assert.equal(await one(client, "SHOW statement_timeout"), "1s");
    for (const query of ["SELECT pg_sleep(60)", `${ON_PRIMARY}SELECT pg_sleep(60)`]) {
      await fails("57014", client.query(query));
    }
    if (config.lock_timeout) {
      assert.equal(await one(client, "SHOW lock_timeout"), "7s");
      assert.equal(await one(client, "SHOW application_name"), "n n");
      assert.equal(await one(client, "SELECT current_schemas(false)::text"), "{public}");
    }
    await client.end();
  }
  const seen = [];
  for (const config of [
    { options: "-c nothing=1" },
    { database: "n_nothing" },
    { password: "wrong" },
    { user: "n_nothing" },
  ]) {
    const { hostname, port, username, password, pathname } = new URL(URL_);
    const usual = { host: hostname, port, user: username, password, database: pathname.slice(1) };
    const error = await new pg.Client({ ...usual, ...config }).connect().catch((error) => error);
    seen.push([error.code, error.message, error.severity]);
  }
  return seen;
});

check("session_state", async (client) => {
  await client.query("SET statement_timeout = '1s'");
  await fails("57014", client.query("SELECT pg_sleep(60)"));
  await client.query("SET statement_timeout = 0");
  assert.equal(await one(client, "SELECT set_config('my.tenant', $1, false)", ["ü"]), "ü");
  assert.equal(await one(client, "SELECT current_setting('my.tenant')"), "ü");
  await client.query("CREATE TEMP TABLE n_temp (i int)");
  for (let i = 0; i < 10; i++) {
    await client.query("INSERT INTO n_temp VALUES ($1)", [i]);
    assert.equal(await one(client, "SELECT count(*) FROM n_temp"), String(i + 1));
  }
  const other = await connect();
  await client.query("SELECT pg_advisory_lock(4911)");
  assert.equal(await one(other, "SELECT pg_try_advisory_lock(4911)"), false);
  assert.equal(await one(client, "SELECT pg_advisory_unlock(4911)"), true);
  assert.equal(await one(other, "SELECT pg_try_advisory_lock(4911)"), true);
  await other.end();
  await client.query("DROP TABLE n_temp");
});

check("large_values", async (client) => {
  const value = Buffer.concat(Array(10).fill(randomBytes(1 << 20)));
  const text = "ü".repeat(5 << 20);
  await table(client, "n_large", "b bytea, t text");
  await client.query("INSERT INTO n_large VALUES ($1, $2)", [value, text]);
  const [[b, t]] = await rows(client, "SELECT b, t FROM n_large");
  assert.ok(value.equals(b) && t === text);
  assert.equal(await one(client, `SELECT length('${text}')`), text.length);
  assert.equal(await one(client, "SELECT length($1)", [text]), text.length);
});

check("many_rows", async (client) => {
  const got = await rows(client, "SELECT i, 'row ' || i FROM generate_series(1, 100000) i");
  assert.deepEqual([got.length, got[0], got.at(-1)], [100000, [1, "row 1"], [100000, "row 100000"]]);
});

check("read_your_writes", async (client) => {
  await table(client, "n_writes", "i int");
  for (let i = 0; i < 200; i++) {
    await client.query("INSERT INTO n_writes VALUES ($1)", [i]);
    assert.deepEqual(await rows(client, "SELECT count(*)::int, max(i) FROM n_writes"), [[i + 1, i]]);
  }
});

check("reads_of_all_kinds", async (client) => {
  await client.query("DROP TABLE IF EXISTS n_reads");
  await client.query("CREATE TABLE n_reads AS SELECT i, repeat('ü', 500) AS t FROM generate_series(1, 1000) i");
  for (let i = 1; i <= 300; i++) {
    // Pauses as applications do: any server that has caught up may answer what comes next.
    if (i % 30 === 0) await pause(150);
    assert.equal(await one(client, "SELECT count(*) FROM n_reads"), "1000");
    const named = await client.query({ name: "n_reads", text: "SELECT i FROM n_reads WHERE i = $1", values: [i] });
    assert.deepEqual(named.rows, [{ i }]);
    if (i % 10 === 0) {
      await fails("22012", client.query("SELECT 1/(i - $1) FROM n_reads", [i]));
      await fails("42703", client.query("SELECT nothing FROM n_reads"));
    }
    if (i % 20 === 0) {
      assert.equal((await client.query("SELECT * FROM n_reads")).rows.length, 1000);
      const cursor = client.query(new Cursor("SELECT i FROM n_reads ORDER BY i"));
      assert.equal((await cursor.read(10)).length, 10);
      assert.equal((await cursor.read(2000)).length, 990);
      await cursor.close();
    }
    if (i % 30 === 0) {
      await client.query("BEGIN READ ONLY");
      assert.equal(await one(client, "SELECT count(*) FROM n_reads"), "1000");
      await client.query("SAVEPOINT a");
      await fails("42P01", client.query("SELECT * FROM n_nothing"));
      await client.query("ROLLBACK TO a");
      assert.equal(await one(client, "SELECT max(i) FROM n_reads WHERE i < $1", [500]), 499);
      await client.query("COMMIT");
    }
  }
});

check("several_statements", async (client) => {
  await table(client, "n_several", "i int PRIMARY KEY");
  const results = await client.query("INSERT INTO n_several VALUES (1); SELECT * FROM n_several; SELECT 'x' AS a");
  const seen = results.map((result) => [result.command, result.rows]);
  assert.deepEqual(seen, [["INSERT", []], ["SELECT", [{ i: 1 }]], ["SELECT", [{ a: "x" }]]]);
  await fails("23505", client.query("INSERT INTO n_several VALUES (2); INSERT INTO n_several VALUES (1)"));
  await client.query("BEGIN; INSERT INTO n_several VALUES (2); COMMIT");
  assert.equal(await one(client, "SELECT count(*) FROM n_several"), "2");
  for (const empty of ["", ";", "-- nothing"]) {
    for (const queryMode of [undefined, "extended"]) {
      assert.deepEqual((await client.query({ text: empty, queryMode })).rows, []);
    }
  }
});

check("pool", async () => {
  const pool = new pg.Pool({ connectionString: URL_, max: 5 });
  await table(pool, "n_pool", "worker int, i int");
  const work = async (worker) => {
    for (let i = 0; i < 20; i++) {
      const client = await pool.connect();
      await client.query("BEGIN");
      await client.query("INSERT INTO n_pool VALUES ($1, $2)", [worker, i]);
      await client.query("COMMIT");
      assert.equal(await one(client, "SELECT count(*)::int FROM n_pool WHERE worker = $1", [worker]), i + 1);
      client.release();
    }
  };
  await Promise.all(Array.from({ length: 10 }, (_, worker) => work(worker)));
  // What others have committed may come late where a standby answers.
  assert.equal(await one(pool, `${ON_PRIMARY}SELECT count(*) FROM n_pool`), "200");
  await pool.end();
});

check("reconnect", async () => {
  for (let i = 0; i < 20; i++) {
    const client = await connect();
    assert.equal(await one(client, "SELECT $1::int", [i]), i);
    await client.end();
  }
  // Left in a transaction, without a word: rolled back.
  const left = await connect();
  await left.query("BEGIN");
  await left.query("SELECT pg_advisory_xact_lock(4912)");
  left.connection.stream.destroy();
  await new Promise((resolve) => left.once("end", resolve));
  const client = await connect();
  await client.query("SELECT pg_advisory_xact_lock(4912)");
  await client.end();
});

async function run(name, body, client) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`no end within ${BOUND} ms`)), BOUND);
  });
  let line;
  try {
    const detail = await Promise.race([body(client), late]);
    line = detail === undefined ? "ok" : `ok ${JSON.stringify(detail)}`;
  } catch (error) {
    const place = /node_postgres\.mjs:(\d+)/.exec(error.stack ?? "")?.[1];
    line = `FAILED at line ${place}: ${error.code ?? error.name}: ${error.message}`;
  }
  clearTimeout(timer);
  console.log(`${name}: ${line.split(/\s+/).join(" ")}`);
  return line.startsWith("ok");
}

for (const { name, run: body } of checks) {
  const client = body.length > 0 ? await connect() : undefined;
  await run(name, body, client);
  client?.connection.stream.destroy();
}
let client = await connect();
for (const { name, run: body } of checks.filter(({ run: body }) => body.length > 0)) {
  if (!(await run(`${name} in one connection`, body, client))) {
    // It must not be the next check's trouble.
    client.connection.stream.destroy();
    client = await connect();
  }
}
await client.end();
// A check that hung may have left something behind.
process.exit(0);
