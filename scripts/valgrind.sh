#!/usr/bin/env bash
# The tests that go through the C++ shim, under valgrind's memcheck: `scripts/valgrind.sh [TEST_FILTER...]`. Any invalid access or use
# of uninitialized memory outside libtorch fails.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if ! command -v valgrind >/dev/null; then
    echo "error: valgrind is missing; install it with: apt-get install valgrind" >&2
    exit 1
fi

# What crosses the boundary between Rust and C++: TorchScript, the operators, libtorch's threads, storages.
tests=(torchscript compressed_linear)
unit_tests=(torchscript:: nn::operator ops::tests)

# The path of a test binary, built if need be.
binary() {
    cargo test --no-run --message-format=json "$@" 2>/dev/null |
        sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1
}

# Threads one after the other are slow enough.
export OMP_NUM_THREADS=2 RAYON_NUM_THREADS=2
check() {
    echo "== $*" >&2
    valgrind --quiet --error-exitcode=9 --suppressions=scripts/valgrind.supp --num-callers=25 "$@"
}

for test in "${tests[@]}"; do check "$(binary --test "$test")" --test-threads=1 "$@"; done
for filter in "${unit_tests[@]}"; do check "$(binary --lib)" --test-threads=1 "$filter"; done
