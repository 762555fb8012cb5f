# The one entry for people and CI. Needs a Rust toolchain; .ci/setup gets the rest, as far as a target needs it.
#   make build                     target/release/pgsteer
#   make demo ARGS="--help"        the demonstration, with its own arguments
#   make test                      everything that must hold before a commit
#   make chaos                     the ledger under 2,000 random faults, the freshness of 1,000,000 reads (PGSTEER_FAULTS, PGSTEER_READS,
#                                  PGSTEER_SEED), an hour
#   make bench                     the figures, see benches/README.md
#   make bench-conflicts           10,000 reads among recovery conflicts (PGSTEER_READS): what pgsteer saves, see tests/conflict_storm.rs
#   make bench-failover            how long after a promotion writes go on, see benches/README.md
#   make functions BINS="..."     the lists of PostgreSQL's own functions, of the server programs in these directories
#   make deny                      licences, advisories and sources of the crates in use

CARGO ?= cargo
ARGS ?=

.PHONY: build setup test lint demo chaos bench bench-conflicts bench-failover functions deny clean

build:
	@.ci/setup compiler
	$(CARGO) build --release --locked

setup:
	@.ci/setup

lint: setup
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets --locked -- -D warnings

test: lint
	@.ci/drivers
	$(CARGO) test --locked

demo:
	@.ci/setup compiler server
	$(CARGO) build --release --locked
	"$${CARGO_TARGET_DIR:-target}/release/pgsteer" demo $(ARGS)

bench-conflicts: setup
	PGSTEER_READS=$${PGSTEER_READS:-10000} $(CARGO) test --locked --test conflict_storm -- --nocapture

chaos: setup
	PGSTEER_FAULTS=$${PGSTEER_FAULTS:-2000} $(CARGO) test --locked --test ledger what_clients_were_told -- --nocapture
	PGSTEER_READS=$${PGSTEER_READS:-1000000} $(CARGO) test --locked --test freshness what_sessions_read -- --nocapture

bench: setup
	$(CARGO) bench --locked $(ARGS)

bench-failover: setup
	@.ci/drivers
	$(CARGO) bench --locked --bench failover -- $(ARGS)

functions:
	BINS="$(BINS)" $(CARGO) test --locked --test builtin_functions -- --ignored write_the_lists

deny:
	@$(CARGO) deny --version >/dev/null 2>&1 || \
		{ echo "deny: there is no cargo-deny: cargo install --locked cargo-deny" >&2; exit 1; }
	$(CARGO) deny --locked check

clean:
	$(CARGO) clean
