#!/usr/bin/env bash
# The tests that go through the C++ shim, under valgrind's memcheck: `scripts/valgrind.sh [TEST_FILTER...]`. Any invalid access or use
# of uninitialized memory outside libtorch fails.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if ! command -v valgrind >/dev/null; then
    echo "error: valgrind is missing; install it with: apt-get install valgrind" >&2
    exit 1
fi

# What crosses the boundary between Rust and C++: TorchScript, the operators, libtorch's threads, storages. Not the tests that go through
# every fixture: they take hours here.
tests=(
    a_module_without_linears a_patched_module_is_refused a_weight_that_is_read_otherwise compressed_data_are_byte_buffers damaged_buffers
    modules_of_one_class shared_weights swapped_buffers two_threads_run what_is_not_a_module
)
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

check "$(binary --lib)" --test-threads=1 "${unit_tests[@]}"
check "$(binary --test torchscript)" --test-threads=1 "${@:-${tests[@]}}"
