#!/usr/bin/env bash
# Runs the tests of the Python package against the debug build, or against the library and the command line that CODECLLM_LIBRARY
# and CODECLLM name. Arguments go to unittest: `scripts/test_python.sh -k tied`.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=registry.sh
source "$(dirname "${BASH_SOURCE[0]}")/registry.sh"

scripts/make_fixtures.sh || {
    say "SKIPPED: the tests of the Python package: no PyTorch or no fixtures, see the message above"
    exit 0
}
if [ -z "${CODECLLM_LIBRARY:-}" ] || [ -z "${CODECLLM:-}" ]; then
    cargo build --quiet --lib --bins
fi
export CODECLLM_LIBRARY=${CODECLLM_LIBRARY:-$PWD/target/debug/libcodecllm.so}
export CODECLLM=${CODECLLM:-$PWD/target/debug/codecllm}
# Compiled once, outside the source tree: importing torch takes seconds else, and several processes do.
unset PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX=$PWD/.cache/python/pycache
PYTHONPATH=python:.cache/python/torch exec python3 -s -W ignore::DeprecationWarning -m unittest discover \
    --start-directory python/tests "$@"
