# The one entry for people and CI. Needs a Rust toolchain; `setup` gets the rest.
#   make test                      everything that must hold before a commit
#   make demo ARGS="--help"        the demonstration, with its own arguments

CARGO ?= cargo
ARGS ?=

.PHONY: build setup test lint demo bench clean

build: setup
	$(CARGO) build --release

setup:
	@.ci/setup

lint: setup
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets --locked -- -D warnings

test: lint
	$(CARGO) test --locked

demo: setup
	$(CARGO) build --release
	"$${CARGO_TARGET_DIR:-target}/release/pgsteer" demo $(ARGS)

bench: setup
	$(CARGO) bench --locked $(ARGS)

clean:
	$(CARGO) clean
