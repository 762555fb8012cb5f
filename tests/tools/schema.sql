-- Something of everything that a dump has to say in the right order.
CREATE SCHEMA shop;
CREATE SCHEMA "Naïve Schema";
CREATE TYPE shop.mood AS ENUM ('sad', 'ok', 'glücklich');
CREATE TYPE shop.place AS (street text, number int);
CREATE DOMAIN shop.positive AS numeric(12, 2) CHECK (VALUE > 0);
CREATE SEQUENCE shop.odd INCREMENT 2 START 7 CACHE 5;

CREATE FUNCTION shop.doubled(i int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT i * 2';
CREATE FUNCTION shop.stamp() RETURNS trigger LANGUAGE plpgsql AS $body$
BEGIN
    NEW.note := coalesce(NEW.note, '') || ' / stamped';
    RETURN NEW;
END
$body$;
CREATE AGGREGATE shop.product(int) (SFUNC = int4mul, STYPE = int, INITCOND = '1');

CREATE TABLE shop.customers (
    id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL,
    mood shop.mood DEFAULT 'ok',
    home shop.place,
    tags text[],
    facts jsonb,
    picture bytea,
    name_length int GENERATED ALWAYS AS (length(name)) STORED
);
CREATE TABLE shop.orders (
    id bigserial PRIMARY KEY,
    customer int NOT NULL REFERENCES shop.customers ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED,
    price shop.positive,
    note text,
    CONSTRAINT no_bargain CHECK (price <> 0.01)
);
CREATE TABLE shop.events (at date NOT NULL, what text) PARTITION BY RANGE (at);
CREATE TABLE shop.events_2024 PARTITION OF shop.events FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');
CREATE TABLE shop.events_rest PARTITION OF shop.events DEFAULT;
CREATE TABLE "Naïve Schema"."Odd ""Table""" (LIKE shop.orders INCLUDING DEFAULTS, "Select" int DEFAULT nextval('shop.odd'));
CREATE TABLE shop.parents (i int);
CREATE TABLE shop.children (j int) INHERITS (shop.parents);
CREATE UNLOGGED TABLE shop.scratch (i int);

CREATE INDEX orders_customer ON shop.orders (customer) INCLUDE (price) WHERE price > 10;
CREATE INDEX customers_facts ON shop.customers USING gin (facts);
CREATE INDEX customers_lower ON shop.customers (lower(name) DESC NULLS LAST);
CREATE STATISTICS shop.both (dependencies) ON customer, price FROM shop.orders;
CREATE TRIGGER stamp BEFORE INSERT ON shop.orders FOR EACH ROW WHEN (NEW.price > 50) EXECUTE FUNCTION shop.stamp();
CREATE VIEW shop.rich AS SELECT c.name, sum(o.price) AS spent
    FROM shop.customers c JOIN shop.orders o ON o.customer = c.id GROUP BY c.name HAVING sum(o.price) > 100;
CREATE RULE nobody AS ON DELETE TO shop.rich DO INSTEAD NOTHING;
ALTER TABLE shop.orders ENABLE ROW LEVEL SECURITY;
CREATE POLICY cheap ON shop.orders FOR SELECT USING (price < 90 OR current_user = 'postgres');
COMMENT ON TABLE shop.orders IS 'what''s ordered; ünïcode \ and "quotes"';
COMMENT ON COLUMN shop.orders.price IS 'in €';
GRANT USAGE ON SCHEMA shop TO PUBLIC;
GRANT SELECT (id, note) ON shop.orders TO PUBLIC;
ALTER DEFAULT PRIVILEGES IN SCHEMA shop GRANT SELECT ON TABLES TO PUBLIC;
CREATE PUBLICATION everything FOR TABLE shop.orders, shop.customers;

INSERT INTO shop.customers (name, mood, home, tags, facts, picture)
    SELECT 'Müller ' || i || E'\t\\N\n', (enum_range(NULL::shop.mood))[1 + i % 3], ROW('Straße ' || i, i)::shop.place,
           ARRAY['a,b', NULL, '"q"', '']::text[], jsonb_build_object('i', i, 'ü', repeat('x', i)), decode(md5(i::text), 'hex')
    FROM generate_series(1, 300) i;
INSERT INTO shop.orders (customer, price, note)
    SELECT 1 + i % 300, 1 + i % 97, CASE i % 3 WHEN 0 THEN NULL WHEN 1 THEN '' ELSE 'note ' || i END
    FROM generate_series(1, 3000) i;
INSERT INTO shop.events SELECT date '2023-06-01' + i, 'event ' || i FROM generate_series(1, 700) i;
INSERT INTO "Naïve Schema"."Odd ""Table""" (id, customer, price) SELECT i, i, i FROM generate_series(1, 20) i;
INSERT INTO shop.children SELECT i, -i FROM generate_series(1, 10) i;
CREATE MATERIALIZED VIEW shop.sums AS SELECT customer, sum(price) AS total FROM shop.orders GROUP BY customer ORDER BY customer;
CREATE UNIQUE INDEX ON shop.sums (customer);
SELECT lo_from_bytea(4711, decode(repeat('00ff10', 5000), 'hex')) AS large_object;
COMMENT ON LARGE OBJECT 4711 IS 'large';
