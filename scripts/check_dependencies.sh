#!/usr/bin/env bash
# Licenses, sources and bans of every dependency, always; known vulnerabilities where the advisory database can be reached. What cannot be
# checked is said loudly, and fails where $CI is set.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

skip() {
    printf '\n*** SKIPPED: %s\n\n' "$*" >&2
    [ -z "${CI:-}" ] || exit 1
}

if ! cargo deny --version >/dev/null 2>&1; then
    skip "licenses, sources and bans of dependencies: cargo-deny is missing; install it with: cargo install cargo-deny --locked"
    exit 0
fi
cargo deny --all-features check --hide-inclusion-graph --allow duplicate bans licenses sources
# The database is a git repository; a copy that was fetched before will do.
if cargo deny fetch db >/dev/null 2>&1; then
    cargo deny --all-features check --disable-fetch advisories
else
    skip "advisories: the database (github.com/RustSec/advisory-db) can't be reached; run this again with a network"
fi
