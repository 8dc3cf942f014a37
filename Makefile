# Everything a newcomer needs:
#   make demo   pods, real traffic, mTLS on the wire, allowed and refused peers
#   make test   every check and every test
SHELL := /bin/bash
export CARGO_TERM_COLOR ?= auto

.DEFAULT_GOAL := help
.PHONY: help setup build build-tests demo test lint unit kubernetes e2e faults churn soak reloads bench bench-full bench-syscalls bench-startup \
	bench-build bench-micro doc deny fuzz fuzz-brief mutants image image-twice test-image clean

help: ## what there is
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: ## install what the demo and the tests need (Debian packages)
	@scripts/setup

# What is tested and measured is what is shipped: static programs.
HOST := $(shell rustc -vV | sed -n 's/^host: //p')
CARGO := scripts/cargo

build: setup ## build the programs
	$(CARGO) build --locked --workspace --bins

# Selected as a whole and with what tests depend on, so that each dependency has the same features, and is built once, for
# all of what is tested.
build-tests: setup
	$(CARGO) build --locked --workspace --bins --tests

demo: build ## the guided tour; needs root for network namespaces
	@scripts/as-root target/$(HOST)/debug/pillion-demo

test: setup lint unit kubernetes fuzz-brief e2e ## every check and every test

lint: ## formatting, clippy, rustdoc, dependency bans and licences
	cargo fmt --all --check
	cargo fmt --manifest-path fuzz/Cargo.toml --check
	scripts/profiles
	$(CARGO) clippy --locked --workspace --all-targets --features pillion-testbed/image,pillion-benches/micro -- -D warnings
	$(CARGO) clippy --locked -p pillion-proxy --all-targets --no-default-features -- -D warnings
	$(CARGO) clippy --locked --manifest-path fuzz/Cargo.toml --target-dir target --lib --bins --examples -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps --features pillion-testbed/image,pillion-benches/micro --quiet
	scripts/cargo-deny check --hide-inclusion-graph bans licenses sources

INTEGRATION_TESTS := $(sort $(basename $(notdir $(wildcard \
	certs/tests/*.rs proxy/tests/*.rs proxy/*/tests/*.rs iptables-init/tests/*.rs))))
unit: ## unit tests, and that the docs match the code
	$(CARGO) test --locked --workspace --lib --bins $(addprefix --test ,$(INTEGRATION_TESTS))
	$(CARGO) test --locked -p pillion-proxy --no-default-features --lib config::

kubernetes: ## the examples for Kubernetes and Prometheus, by the schemas and tools that will read them
	scripts/kubernetes-examples

e2e: build-tests ## pods in namespaces, real applications, with IPv6 and without, both TLS engines; needs root
	PILLION_TEST_TLS_ENGINE=records scripts/e2e
	PILLION_TEST_TLS_ENGINE=rustls PILLION_TEST_IPV6=off PILLION_TEST_BULK_MIB=64 scripts/e2e

faults: build-tests ## the faults of docs/faults.md, a line for each; FAULTS=full: in their full number; needs root
	PILLION_TEST_FAULTS=$(FAULTS) scripts/faults

churn: setup ## two pods, everything changes and nothing may fail, for MINUTES=10; needs root
	$(CARGO) build --locked --release -p pillion-proxy -p pillion-init -p pillion-certs
	PILLION_BIN_DIR=$(CURDIR)/target/$(HOST)/release PILLION_TEST_CHURN_SECONDS=$$(($(or $(MINUTES),10) * 60)) \
	  scripts/e2e churn --nocapture

soak: setup ## all kinds of load, changes and kills at once, for MINUTES=10; needs root
	$(CARGO) build --locked --release -p pillion-proxy -p pillion-init -p pillion-certs
	PILLION_BIN_DIR=$(CURDIR)/target/$(HOST)/release PILLION_TEST_SOAK_SECONDS=$$(($(or $(MINUTES),10) * 60)) \
	  scripts/e2e soak --nocapture

reloads: setup ## certificates replaced 1,000 times, 100 of them torn, at 200 new connections a second; needs root
	$(CARGO) build --locked --release -p pillion-proxy -p pillion-init -p pillion-certs
	PILLION_BIN_DIR=$(CURDIR)/target/$(HOST)/release PILLION_TEST_RELOADS=$(or $(RELOADS),1000) \
	  scripts/e2e rotation --nocapture

# Built by itself, as what is shipped: beside the load generator the proxy would get that one's features of tokio.
bench-build: setup
	scripts/bench-setup
	$(CARGO) build --locked --release -p pillion-proxy -p pillion-init -p pillion-certs
	cargo build --locked --release -p pillion-benches --bins
	@mkdir -p target/bench

BENCH := scripts/as-root env PILLION_BIN_DIR=$(CURDIR)/target/$(HOST)/release target/release/pillion-bench
BENCH_ZTUNNEL := $(if $(ZTUNNEL),--ztunnel $(ZTUNNEL))

bench: bench-build ## side by side with Envoy and HAProxy (ZTUNNEL=<binary> adds it), 5 minutes
	$(BENCH) run --quick $(BENCH_ZTUNNEL) $(BENCH_ARGS)

bench-full: bench-build ## the same with all loads
	$(BENCH) run --full $(BENCH_ZTUNNEL) $(BENCH_ARGS)

bench-syscalls: bench-build ## system calls a MB, a request and a connection, by strace
	$(BENCH) syscalls $(BENCH_ZTUNNEL) $(BENCH_ARGS)

bench-startup: bench-build ## how long the proxy takes to be ready, and to end once nothing is open
	$(BENCH) startup $(BENCH_ARGS)

bench-micro: ## criterion: what a verdict, a look at a ClientHello and a frame cost
	cargo bench --locked -p pillion-benches --features micro

fuzz: ## fuzz all that parses bytes of others, each target for SECONDS=60
	scripts/fuzz $(or $(SECONDS),60)

fuzz-brief: # that every target builds, takes its seeds, and stands a few seconds of more
	scripts/fuzz brief

mutants: ## which small changes of the policy engine no test notices, some hours (PACKAGE=pillion-certs)
	scripts/mutants $(or $(PACKAGE),pillion-policy)

# Debian 13 has Docker's client and its builder in packages of their own, which docker.io only recommends.
DOCKER_PACKAGES := docker.io debootstrap -- docker-cli docker-buildx
# Root may have another toolchain than the caller, or none. target itself stays the caller's.
IMAGE = @mkdir -p target && \
	  scripts/as-root env "PILLION_RUST_SYSROOT=$$(rustc --print sysroot)" scripts/docker-local scripts/image

image: setup ## the container images, into target/image; needs root for an engine of its own
	scripts/packages $(DOCKER_PACKAGES)
	$(IMAGE)

image-twice: setup # the same, and that a second build has the same bytes
	scripts/packages $(DOCKER_PACKAGES)
	$(IMAGE) twice

test-image: image ## pods made of containers, from those images
	scripts/packages docker-compose
	$(CARGO) build --locked -p pillion-certs
	@scripts/test-image

clean: ## remove what was built, and pods that a killed run left behind
	scripts/as-root scripts/sweep
	scripts/as-root rm -rf target/docker target/image
	cargo clean
