# What one does with this repository. `make` alone lists it.
CARGO ?= cargo
DENY_VERSION := 0.20.2
FUZZ_VERSION := 0.13.2
# How long each target is fuzzed, and how many rotations a soak takes.
FUZZ_SECONDS ?= 60
SOAK_ROTATIONS ?= 10000
TOOLS := $(CURDIR)/target/tools
# Where tools that `make` had to install itself are; those already on the PATH come first.
export PATH := $(PATH):$(TOOLS)/bin
CRDS := charts/llmwarden/files/crds
PROGRAM := llmwarden-controller llmwarden-sidecar
HOST := $(shell rustc -vV | sed -n 's/^host: //p')
# Static, so that a program needs nothing but itself; relocations packed, so that starting it touches fewer pages.
SHIPPED := -C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs
# Cargo.toml chooses aws-lc's small tables; what runs for every record is not to be small too.
CRYPTO := -O2
# What the sidecar was seen doing under load: the compiler makes fast what is hot, and small what is not. Its path tells what is in it, as
# cargo builds a dependency anew only if its flags are others.
RECORDED := sidecar/release.profdata.gz
PROFILE := $(CURDIR)/target/sidecar-$(firstword $(shell sha256sum $(RECORDED))).profdata
# Functions are called in it by names with hashes of all this.
RECORDED_OF := { rustc -vV; cat Cargo.toml Cargo.lock; } | sha256sum
# llvm-profdata of the LLVM that Rust has: `rustup component add llvm-tools`, or a package of that version.
PROFDATA ?= $(firstword $(wildcard $(shell rustc --print sysroot)/lib/rustlib/$(HOST)/bin/llvm-profdata) llvm-profdata)

.DELETE_ON_ERROR:
.PHONY: help build release llmwarden-controller llmwarden-sidecar profile cluster helm crds test clients e2e check deny demo bench soak fuzz

help: ## Lists the targets
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Each by itself: together they would be built with each other's features.
build: ## Builds the controller and the sidecar
	$(CARGO) build --locked -p llmwarden-controller
	$(CARGO) build --locked -p llmwarden-sidecar

release: $(PROGRAM) ## Builds both programs as they are shipped, in target/<host>/release (PROGRAM=llmwarden-sidecar for one)

llmwarden-controller:
	RUSTFLAGS="$(SHIPPED)" AWS_LC_SYS_CFLAGS="$(CRYPTO)" $(CARGO) build --locked --release --target $(HOST) -p $@

llmwarden-sidecar: $(PROFILE)
	@$(RECORDED_OF) | cmp -s - $(RECORDED).of || echo "warning: $(RECORDED) is of another Rust, Cargo.toml or Cargo.lock, and of little use: make profile" >&2
	RUSTFLAGS="$(SHIPPED) -C profile-use=$(PROFILE) -C llvm-args=-disable-vp" AWS_LC_SYS_CFLAGS="$(CRYPTO)" $(CARGO) build --locked --release --target $(HOST) -p $@

# Once: cargo would build the sidecar anew for a file with another time.
$(PROFILE):
	mkdir -p $(@D)
	gzip -dc $(RECORDED) > $@

# The load of the bench, and what only tests ask for. With %c the counters are in the file from the start, as these sidecars are killed;
# values can't be recorded then.
profile: cluster helm llmwarden-controller ## Records what the sidecar does under load, by which `make release` builds it (needs llvm-profdata)
	$(PROFDATA) merge --version | grep "LLVM version $$(rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')\."
	rm -rf target/profile/counts
	RUSTFLAGS="$(SHIPPED) -C profile-generate -C llvm-args=-runtime-counter-relocation -C llvm-args=-disable-vp" AWS_LC_SYS_CFLAGS="$(CRYPTO)" \
		$(CARGO) build --locked --release --target $(HOST) --target-dir target/profile -p llmwarden-sidecar
	ln -sf $(CURDIR)/target/$(HOST)/release/llmwarden-controller target/profile/$(HOST)/release/
	$(CARGO) build --locked --release -p llmwarden-tests --bin bare
	export LLMWARDEN_PROGRAMS=$(CURDIR)/target/profile/$(HOST)/release LLVM_PROFILE_FILE='$(CURDIR)/target/profile/counts/%p%c.profraw' && \
		$(CARGO) test --locked -p llmwarden-tests --test it -- proxy:: && \
		BENCH=delivery,endpoint,proxy $(CARGO) run --locked --release -q -p llmwarden-tests --bin bench
	$(PROFDATA) merge -o target/profile/sidecar.profdata target/profile/counts
	gzip -9 -n -c target/profile/sidecar.profdata > target/profile/sidecar.profdata.gz
	mv target/profile/sidecar.profdata.gz $(RECORDED)
	$(RECORDED_OF) > $(RECORDED).of

cluster: ## Builds the control plane that tests run on (once, minutes; needs Go or KUBEBUILDER_ASSETS)
	tests/build cluster

helm: ## Builds the helm that tests install the chart with (once, minutes; needs Go)
	tests/build helm

crds: ## Writes the chart's custom resource definitions from the Rust types
	$(CARGO) run --locked -q -p llmwarden-controller -- crd --output-dir $(CRDS)

test: cluster helm build ## Runs all tests, on real control planes
	$(CARGO) test --workspace --locked

clients: build ## Runs the providers' own SDKs, for Python, Node and Go, against a fake provider (installs them into target/)
	tests/build clients
	$(CARGO) test --locked --package llmwarden-tests --test clients

e2e: ## Runs the tests on a real node, with pods and our images (Linux, root; installs Debian packages)
	LLMWARDEN_PROGRAMS=$(CURDIR)/target/$(HOST)/release tests/e2e

check: deny ## Checks format, lints, licences, generated files and that the fuzz targets build
	$(CARGO) fmt --all --check
	$(CARGO) fmt --manifest-path fuzz/Cargo.toml --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	$(CARGO) clippy --package llmwarden-tests --test e2e --test clients --locked -- -D warnings
	$(CARGO) check --manifest-path fuzz/Cargo.toml --locked --target-dir target/fuzz-check
	cargo-deny --locked check licenses bans sources
	$(CARGO) run --locked -q -p llmwarden-controller -- crd --check $(CRDS)

deny:
	@command -v cargo-deny >/dev/null || $(CARGO) install --debug cargo-deny --locked --version $(DENY_VERSION) --root $(TOOLS)

demo: cluster helm build ## Shows a key rotate under a running agent (KEEP=1 leaves the cluster running)
	KEEP=$(KEEP) $(CARGO) run --locked -q -p llmwarden-tests --bin demo

bench: cluster helm release ## Measures delivery, endpoint, proxy, many accesses, admission and footprint (BENCH=delivery,endpoint,proxy,scale,admission)
	$(CARGO) build --locked --release -p llmwarden-tests --bin bare
	LLMWARDEN_PROGRAMS=$(CURDIR)/target/$(HOST)/release BENCH=$(BENCH) ACCESSES=$(ACCESSES) \
		$(CARGO) run --locked --release -q -p llmwarden-tests --bin bench

soak: ## Rotates 10,000 times under readers of file, endpoint and long poll (SOAK_ROTATIONS=n)
	LLMWARDEN_SOAK_ROTATIONS=$(SOAK_ROTATIONS) $(CARGO) test --locked -p llmwarden-tests --test it -- --nocapture soak::

# New inputs stay out of the seeds: what is worth it is copied there.
fuzz: ## Fuzzes what comes from others, a minute each (FUZZ_SECONDS=n)
	@command -v cargo-fuzz >/dev/null || $(CARGO) install cargo-fuzz --locked --version $(FUZZ_VERSION) --root $(TOOLS)
	@for target in live_json request_head interval model_reader proxy_target; do \
		mkdir -p target/fuzz/corpus/$$target target/fuzz/artifacts/$$target; \
		RUST_BACKTRACE=0 $(CARGO) fuzz run --sanitizer none --target-dir target/fuzz $$target \
			target/fuzz/corpus/$$target fuzz/seeds/$$target -- -max_total_time=$(FUZZ_SECONDS) -print_final_stats=1 -verbosity=0 \
			-artifact_prefix=target/fuzz/artifacts/$$target/ || exit 1; \
	done
