#!/usr/bin/env bash
# Runs the tests of the chat page in a headless Chromium: $CHROMIUM, or the first one found. Without one they are skipped, loudly.
# The server is a scripted one, then that of the debug build, or of the command line that CODECLLM names.
# Arguments go to unittest: `scripts/test_page.sh -k restart`.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=registry.sh
source "$(dirname "${BASH_SOURCE[0]}")/registry.sh"

skip() {
    say "WARNING: the tests of the chat page are skipped: $*"
    exit 0
}

find_chromium() {
    local name
    for name in ${CHROMIUM:-chromium chromium-browser google-chrome google-chrome-stable}; do
        ! command -v "$name" || return 0
    done
    return 1
}

chromium=$(find_chromium) || skip "no ${CHROMIUM:-Chromium} here;" \
    "install one with: $(as_root 'apt-get install -y --no-install-recommends chromium'), or name one in \$CHROMIUM"
export CHROMIUM=$chromium
require_python
lock browser
(python_tools browser) || skip "the Python packages that drive Chromium could not be installed, see the message above"
[ -n "${CODECLLM:-}" ] || cargo build --quiet --bins
export CODECLLM=${CODECLLM:-$PWD/target/debug/codecllm}
PYTHONPATH=.cache/python/browser exec python3 -s -m unittest discover --start-directory tests/page "$@"
