#!/usr/bin/env bash
# Makes .cache/python/torch, where this python3 finds PyTorch, numpy and safetensors: run with PYTHONPATH=.cache/python/torch.
# What .libtorch holds already is linked into it, not downloaded again, where it was made for this python3 (CPython 3.11).
# Safe to run again: it does nothing when everything is there.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=registry.sh
source "$(dirname "${BASH_SOURCE[0]}")/registry.sh"

dest=.cache/python/torch
requirements=scripts/requirements/torch_python.txt

cache_tag() { python3 -c 'import sys; print(sys.implementation.cache_tag)'; }

stamp() { echo "$(stamp_of "$requirements") $(cache_tag)"; }

require_supported_python() {
    require_python
    case "$(cache_tag)" in
    cpython-31[0-3]) ;;
    *) fail "$(python3 --version) ($(cache_tag)) has no wheel of torch 2.11 with torch.jit.script;" \
        "put a CPython 3.10 to 3.13 first in PATH" ;;
    esac
}

# link_libtorch FOLDER: hard links of .libtorch's files, which cost no disk; copies where it lies on another one.
link_libtorch() {
    [ -f ".libtorch/torch/_C.$(cache_tag)-x86_64-linux-gnu.so" ] || return 0
    cp --archive --link .libtorch/. "$1" 2>/dev/null || cp --archive .libtorch/. "$1"
    rm -f "$1/.installed"
}

# missing_from FOLDER: the requirements, less those that FOLDER holds in the same version.
missing_from() {
    local line keep=1 name
    while IFS= read -r line; do
        if [[ $line == [a-z]*==* ]]; then
            name=${line%% *}
            name=${name//-/_}
            keep=$([ -d "$1/${name/==/-}.dist-info" ] && echo 0 || echo 1)
        fi
        if [ "$keep" = 1 ]; then printf '%s\n' "$line"; fi
    done <"$requirements"
}

# require_disk GIGABYTES
require_disk() {
    local free
    free=$(($(df --output=avail -k .cache | tail -n 1) / 1000000))
    [ "$free" -ge "$1" ] || fail "$PWD/.cache: $free GB are free, $1 GB are needed; free some space"
}

# install SCRATCH: leaves SCRATCH/out.
install() {
    mkdir -p "$1/out" "$1/tmp"
    link_libtorch "$1/out"
    missing_from "$1/out" >"$1/missing.txt"
    # pip unpacks under TMPDIR, which is often too small (a tmpfs) for this.
    TMPDIR=$PWD/$1/tmp python3 -m pip install --no-deps --only-binary=:all: --require-hashes --no-compile \
        --target "$1/packages" --requirement "$1/missing.txt" >&2 ||
        fail "$requirements: pip could not install it for $(python3 --version); see its message above"
    # Several packages share the folder nvidia/: linked into place file by file.
    cp --archive --link --force "$1/packages/." "$1/out"
}

main() {
    require_supported_python
    ! is_current "$dest" "$(stamp)" || return 0
    lock setup_python
    ! is_current "$dest" "$(stamp)" || return 0
    require_disk 8 # 3.9 stay; the packages are downloaded and unpacked beside it
    say "installing PyTorch for $(python3 --version) into $dest, once: a minute to a few ..."
    rm -rf "$dest.partial"
    mkdir -p "$dest.partial"
    install "$dest.partial"
    PYTHONPATH=$dest.partial/out python3 -s -c 'import torch' || fail "$dest: import torch failed, see its message above"
    rm -rf "$dest" "$dest.stamp"
    mv "$dest.partial/out" "$dest"
    rm -rf "$dest.partial"
    stamp >"$dest.stamp"
    say "PyTorch is ready in $dest"
}

main "$@"
