#!/usr/bin/env bash
# Makes .cache/fixtures/torchscript: the TorchScript modules that tests patch, with example inputs and outputs (620 MB), from
# the BF16 stories15M and random weights. Does nothing when they are there already.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=registry.sh
source "$(dirname "${BASH_SOURCE[0]}")/registry.sh"

scripts/fetch_stories15m.sh --dtype bf16
scripts/setup_python.sh

build() {
    say "making TorchScript fixtures ..."
    # torch.jit.script writes sets in the order of their hashes: one seed, one text.
    PYTHONHASHSEED=0 PYTHONPATH=.cache/python/torch python3 -s tests/fixtures/make_torchscript.py \
        "$1/out" .cache/models/stories15M-bf16
}

make_once .cache/fixtures/torchscript build scripts/make_fixtures.sh scripts/requirements/torch_python.txt \
    .cache/models/stories15M-bf16.stamp tests/fixtures/make_torchscript.py \
    tests/fixtures/torchscript/llama.py tests/fixtures/torchscript/small.py
