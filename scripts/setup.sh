#!/usr/bin/env bash
# Makes this repository ready for plain `cargo build`: checks what must be there and puts libtorch into .libtorch, where
# .cargo/config.toml points. Safe to run again: it does nothing when everything is there.
#
# usage: scripts/setup.sh [cpu|cuda]    the set of libtorch's packages; default: cuda where there is an NVIDIA GPU
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=registry.sh
source "$(dirname "${BASH_SOURCE[0]}")/registry.sh"

has_nvidia_gpu() { [ -e /dev/nvidia0 ] || nvidia-smi --list-gpus 2>/dev/null | grep -q '^GPU '; }

require_platform() {
    [ "$(uname -s) $(uname -m)" = "Linux x86_64" ] ||
        fail "this is $(uname -s) $(uname -m); the packages of libtorch named in scripts/requirements are for Linux x86_64"
}

require_rust() {
    local wanted found cure="curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh"
    if ! command -v cargo >/dev/null || ! command -v rustc >/dev/null; then
        fail "Rust is missing; install it with: $cure"
    fi
    wanted=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml)
    found=$(rustc --version | cut -d ' ' -f 2)
    printf '%s\n' "$wanted" "$found" | sort --version-sort --check=silent ||
        fail "rustc $found is too old, $wanted or later is needed; update it with: rustup update stable" \
            "(if it did not come from rustup: $cure)"
}

require_cxx() {
    command -v "${CXX:-c++}" >/dev/null ||
        fail "a C++ compiler (${CXX:-c++}) is missing; install it with: $(as_root 'apt-get install -y build-essential')"
}

# require_disk GIGABYTES
require_disk() {
    local free
    free=$(($(df --output=avail -k . | tail -n 1) / 1000000))
    [ "$free" -ge "$1" ] || fail "$PWD: $free GB are free, $1 GB are needed; free some space or clone to a larger disk"
}

# install_libtorch SET STAMP: into a folder beside .libtorch, renamed when complete.
install_libtorch() {
    local set=$1 stamp=$2 gigabytes platforms minor
    gigabytes=$([ "$set" = cuda ] && echo 14 || echo 5)
    require_python
    require_disk "$gigabytes"
    # The same wheels whatever Python is here: pip is told to take them for CPython 3.11 and a glibc up to 2.28.
    platforms=(--platform manylinux2014_x86_64 --platform manylinux2010_x86_64 --platform manylinux1_x86_64)
    for minor in {5..28}; do platforms+=(--platform "manylinux_2_${minor}_x86_64"); done
    say "installing libtorch ($set) into .libtorch, once: half a minute to a few minutes ..."
    rm -rf .libtorch.partial
    mkdir -p .libtorch.partial/tmp
    # pip unpacks under TMPDIR, which is often too small (a tmpfs) for this.
    TMPDIR=$PWD/.libtorch.partial/tmp python3 -m pip install --no-deps --only-binary=:all: --require-hashes --no-compile \
        --python-version 3.11 "${platforms[@]}" --target .libtorch.partial/packages \
        --requirement "scripts/requirements/libtorch_$set.txt" >&2 ||
        fail "libtorch: pip could not install it, see its message above; run this script again when that is cured"
    [ -f .libtorch.partial/packages/torch/lib/libtorch_cpu.so ] || fail "libtorch: the torch package has no libtorch_cpu.so"
    echo "$stamp" >.libtorch.partial/packages/.installed
    rm -rf .libtorch
    mv .libtorch.partial/packages .libtorch
    rm -rf .libtorch.partial
}

# installed SET: .libtorch holds what SET's requirements name.
installed() { [ "$(cat .libtorch/.installed 2>/dev/null)" = "$(stamp "$1")" ]; }

stamp() { echo "$1 $(stamp_of "scripts/requirements/libtorch_$1.txt")"; }

main() {
    local set=${1:-}
    if [ -z "$set" ]; then
        set=$(has_nvidia_gpu && echo cuda || echo cpu)
    elif [ "$set" != cpu ] && [ "$set" != cuda ]; then
        fail "usage: scripts/setup.sh [cpu|cuda]"
    fi
    require_platform
    require_rust
    require_cxx
    # The cuda set holds all of the cpu set.
    if installed "$set" || installed cuda; then return; fi
    lock setup
    if installed "$set" || installed cuda; then return; fi
    install_libtorch "$set" "$(stamp "$set")"
    say "libtorch is ready in .libtorch"
}

main "$@"
