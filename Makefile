# What one does with this repository. `make` alone lists it.
CARGO ?= cargo
DENY_VERSION := 0.20.2
TOOLS := $(CURDIR)/target/tools
# Where tools that `make` had to install itself are; those already on the PATH come first.
export PATH := $(PATH):$(TOOLS)/bin
CRDS := charts/llmwarden/files/crds

.PHONY: help build cluster helm crds test check deny demo bench

help: ## Lists the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Each by itself: together they would be built with each other's features.
build: ## Builds the controller and the sidecar
	$(CARGO) build --locked -p llmwarden-controller
	$(CARGO) build --locked -p llmwarden-sidecar

cluster: ## Builds the control plane that tests run on (once, minutes; needs Go or KUBEBUILDER_ASSETS)
	tests/build cluster

helm: ## Builds the helm that tests install the chart with (once, minutes; needs Go)
	tests/build helm

crds: ## Writes the chart's custom resource definitions from the Rust types
	$(CARGO) run --locked -q -p llmwarden-controller -- crd --output-dir $(CRDS)

test: cluster helm build ## Runs all tests, on real control planes
	$(CARGO) test --workspace --locked

check: deny ## Checks format, lints, licences and generated files
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	cargo-deny --locked check licenses bans sources
	$(CARGO) run --locked -q -p llmwarden-controller -- crd --check $(CRDS)

deny:
	@command -v cargo-deny >/dev/null || $(CARGO) install cargo-deny --locked --version $(DENY_VERSION) --root $(TOOLS)

demo: cluster helm build ## Shows a key rotate under a running agent (KEEP=1 leaves the cluster running)
	KEEP=$(KEEP) $(CARGO) run --locked -q -p llmwarden-tests --bin demo

bench: cluster helm ## Measures delivery times and the sidecar's footprint, with release builds
	$(CARGO) build --locked --release -p llmwarden-controller
	$(CARGO) build --locked --release -p llmwarden-sidecar
	$(CARGO) run --locked --release -q -p llmwarden-tests --bin bench
