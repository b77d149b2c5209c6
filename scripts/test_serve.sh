#!/usr/bin/env bash
# Runs OpenAI's Python client against the server of the debug build, or of the command line that CODECLLM names.
# Arguments go to unittest: `scripts/test_serve.sh -k stream`.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=registry.sh
source "$(dirname "${BASH_SOURCE[0]}")/registry.sh"

if ! (require_python && lock openai_client && python_tools openai_client); then
    printf '\n*** SKIPPED: the tests with OpenAI'\''s Python client: it could not be installed, see the message above\n\n' >&2
    exit 0
fi
[ -n "${CODECLLM:-}" ] || cargo build --quiet --bins
export CODECLLM=${CODECLLM:-$PWD/target/debug/codecllm}
PYTHONPATH=.cache/python/openai_client exec python3 -s -m unittest discover --start-directory python/serve_tests "$@"
