.DEFAULT_GOAL := help
.PHONY: help setup models fixtures demo test kill-test soak fuzz fuzz-pack miri valgrind test-cuda test-cuda-binary check package bench bench-cuda doc clean-cache

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

setup: ## check what must be there and put libtorch into .libtorch
	@scripts/setup.sh

# The profile that these build anyway.
demo bench: export CODECLLM_PROFILE = release
demo: setup ## compress a real model, answer a question with it before and after, and print a table
	@scripts/fetch_smollm2.sh
	cargo run --release --example demo -- .cache/models/SmolLM2-135M-Instruct .cache/demo

models: setup # a model that cannot be had does not fail the build: the tests that need it say that they skip
	@scripts/fetch_stories15m.sh || echo "WARNING: no stories15M: the tests that need it will skip" >&2
	@scripts/fetch_stories15m.sh --dtype bf16 || echo "WARNING: no stories15M-bf16: the tests that need it will skip" >&2
	@scripts/fetch_smollm2.sh || echo "WARNING: no SmolLM2: the tests that need it will skip" >&2

fixtures: models # likewise
	@scripts/make_fixtures.sh || echo "WARNING: no TorchScript fixtures: the tests that need them will skip" >&2

test: fixtures ## every test, of Rust, of Python and of the chat page
	cargo test
	scripts/test_python.sh
	scripts/test_serve.sh
	scripts/test_page.sh

kill-test: models ## compress and decompress killed at a hundred random moments each: minutes
	cargo test --test interrupted -- --ignored --nocapture

soak: models ## the server under SOAK_CLIENTS (64) streaming clients for SOAK_SECONDS (600)
	SOAK_SECONDS=$${SOAK_SECONDS:-600} SOAK_CLIENTS=$${SOAK_CLIENTS:-64} cargo test --test serve_soak -- --ignored --nocapture

FUZZ_SECONDS ?= 60
FUZZ_TARGETS = open_container decode_tile decode_table parse_config tokenizer_and_template import_gguf torchscript_patch
fuzz: setup ## each fuzz target for FUZZ_SECONDS; needs nightly Rust and cargo-fuzz
	@cargo fuzz --version >/dev/null || { echo "error: cargo-fuzz is missing; install it with: cargo install cargo-fuzz --locked" >&2; exit 1; }
	cargo test --test fuzz_smoke -- --ignored write_corpus
	@for target in $(FUZZ_TARGETS); do echo "== $$target, $(FUZZ_SECONDS) s" >&2; \
	[ $$target != torchscript_patch ] || export ASAN_OPTIONS=detect_leaks=0; \
	LD_LIBRARY_PATH=$(CURDIR)/.libtorch/torch/lib:$(CURDIR)/.libtorch/nvidia/cu13/lib cargo +nightly fuzz run $$target $(FUZZ_FLAGS) -- \
	-max_total_time=$(FUZZ_SECONDS) -timeout=10 -rss_limit_mb=8192 \
	$$([ $$target != torchscript_patch ] || echo -detect_leaks=0) || exit 1; done # libtorch leaks a zip reader for each file it refuses

fuzz-pack: setup ## the fuzz targets, stripped, with their seeds and scripts/run_fuzz.sh: target/fuzz.txz, for a machine without cargo
	cargo test --test fuzz_smoke -- --ignored write_corpus
	cargo +nightly fuzz build
	@rm -rf target/fuzz-pack && mkdir -p target/fuzz-pack/bin && cp -r fuzz/corpus scripts/run_fuzz.sh target/fuzz-pack
	@for target in $(FUZZ_TARGETS); do strip -o target/fuzz-pack/bin/$$target fuzz/target/*/release/$$target || exit 1; done
	@tar -C target/fuzz-pack -c . | xz -9 -T1 > target/fuzz.txz && ls -l target/fuzz.txz
	@echo "there: mkdir fuzz && tar -C fuzz -xJf fuzz.txz && T=TORCH fuzz/run_fuzz.sh SECONDS JOBS OUTDIR"

# Without libtorch: nothing of it is built, and what would call it is not run.
# Tree borrows, and no word about leaks and casts: rayon's threads never end, and its queues are not made for the stricter rules.
# With the vector instructions that it knows: the portable decoder runs beside them.
MIRI_TARGET = $(shell [ "$$(uname -m)" != x86_64 ] || echo -Ctarget-feature=+avx2,+fma,+f16c)
MIRI = RUSTFLAGS="$(MIRI_TARGET)" MIRIFLAGS="-Zmiri-disable-isolation -Zmiri-tree-borrows -Zmiri-permissive-provenance -Zmiri-ignore-leaks" cargo +nightly miri test --no-default-features --features torch-sys/doc-only
MIRI_TESTS = rans::decoder rans::frequency_table::tests::wrong cuda::at_once cuda::slots ops::tests
miri: ## encoding, decoding sound and damaged tiles and tables, and what threads share, under Miri: minutes; needs nightly Rust with miri and rust-src
	PROPTEST_CASES=2 $(MIRI) --lib -- $(MIRI_TESTS)
	$(MIRI) --test pure_codec

valgrind: fixtures ## the C++ shim and its tests under valgrind's memcheck
	scripts/valgrind.sh

test-cuda: models ## the tests that need a GPU; they skip, with a message, where there is none
	cargo test --test cuda -- --test-threads=1 --nocapture
	cargo test --lib -- --test-threads=1 --nocapture cuda transformer

test-cuda-binary: setup ## the same as one stripped binary, target/cuda-tests, for a machine with a GPU and without cargo
	@binary=$$(cargo test --release --no-run --test cuda --message-format=json | \
	sed -n 's/.*"executable":"\([^"]*\/cuda-[^"]*\)".*/\1/p' | tail -n 1) && \
	strip -o target/cuda-tests "$$binary" && echo "run it there with: LD_LIBRARY_PATH=TORCH/lib:TORCH/../nvidia/cu13/lib ./cuda-tests --test-threads=1"

check: fixtures ## everything a change must pass: format, lints, documentation, tests, licenses
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	cargo check --no-default-features --all-targets
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps
	cargo test
	scripts/test_python.sh
	scripts/test_serve.sh
	scripts/test_page.sh
	@scripts/check_dependencies.sh

package: setup ## the crate's tarball, built from its own contents with the libtorch of this checkout: minutes
	CARGO_TARGET_DIR=$(CURDIR)/target cargo package --locked # where dependencies are built already

bench: models ## the numbers: ratios, speeds, perplexity
	@scripts/fetch_wikitext.sh
	@scripts/fetch_whisper.sh
	cargo bench

bench-cuda: setup ## the numbers of a GPU: layers of Llama-3.1-8B, and a random model of that shape that generates
	cargo run --release -- bench --device cuda --bits 5.3
	cargo run --release -- bench --device cuda --bits 6.2
	cargo run --release -- bench --device cuda --lossless --dtype bf16
	cargo run --release -- bench generate --config 8b --bits 5.3

doc: setup ## the library's documentation, in target/doc
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps

clean-cache: ## remove fetched models, packages and texts; libtorch and target stay
	rm -rf .cache
