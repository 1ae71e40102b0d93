#!/usr/bin/env bash
# Make this machine ready for `make demo` (setup.sh demo) or for everything else (setup.sh): the
# system's packages that are missing (by apt, as root, on Debian) and a virtual environment with the
# locked Python dependencies. A second run finds everything in place and ends at once.
#
# Nothing is changed before it is known that all of it can be done. Ends with 3 otherwise,
# after one list of what to install.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=.venv
stamp=$venv/.qtrace-stamp
# What the demo does not need is left to the others: recording takes no compiler.
case ${1:-all} in
    demo) lock=requirements.txt ;;
    all) lock=requirements-dev.txt ;;
    *)
        echo "usage: scripts/setup.sh [demo]" >&2
        exit 2
        ;;
esac

say() { echo "setup: $*" >&2; }

has_command() { command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ]; }

has_bcc() { # the distribution's: PyPI's "bcc" is another program
    compgen -G '/usr/lib/python3*/*-packages/bcc/libbcc.py' >/dev/null
}

has_headers() { # the running kernel's own, or any to stand in for them
    [ -d "/lib/modules/$(uname -r)/build/include" ] || [ -e /sys/kernel/kheaders.tar.xz ] ||
        compgen -G '/usr/src/linux-headers-*-common/include' >/dev/null
}

find_python() { # prints the first interpreter that is new enough and can make an environment
    local candidate
    for candidate in "${PYTHON:-python3}" /usr/bin/python3 python3.{14,13,12,11}; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
            >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

find_missing() { # prints the Debian packages of what this machine lacks
    has_command qemu-system-x86_64 || echo qemu-system-x86
    "$venv/bin/python" -c '' 2>/dev/null || find_python >/dev/null || echo python3-venv
    if [ "$lock" = requirements.txt ]; then
        return
    fi
    has_command qemu-img && has_command qemu-storage-daemon || echo qemu-utils
    has_bcc || echo python3-bpfcc # compiles probes/ when they are changed
    has_headers || echo linux-headers-amd64
    has_command gdb || echo gdb
    has_command bpftrace || echo bpftrace # benchmarks stand beside it
    has_command strace || echo strace     # a test lets it play an older kernel
    has_command fusermount3 || echo fuse3 # tests let a file system die
    has_command gcc || echo gcc
    has_command ld || echo binutils
    has_command make || echo make
}

fingerprint() { # of all that the environment is made from by a lock
    { cat "$1" pyproject.toml && pwd; } | sha256sum | cut -d ' ' -f 1
}

is_made() { # an environment for everything else serves the demo, too
    local made
    made=$(cat "$stamp" 2>/dev/null) || return 1
    [ "$made" = "$(fingerprint "$lock")" ] || [ "$made" = "$(fingerprint requirements-dev.txt)" ]
}

install_packages() {
    say "installing $*"
    apt-get -qq update
    DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install "$@" \
        </dev/null >/dev/null
}

make_venv() {
    local python
    if ! "$venv/bin/python" -c '' 2>/dev/null; then
        python=$(find_python) || {
            say "no Python 3.11 or later with venv was found: install one and name it by PYTHON="
            exit 3
        }
        say "making $venv with $("$python" --version)"
        "$python" -m venv --clear "$venv"
    fi
    rm -f "$stamp"
    say "installing the Python dependencies of $lock"
    # With what the line below it builds qtrace by.
    "$venv/bin/python" -m pip install -qq --disable-pip-version-check \
        -r "$lock" -c requirements-dev.txt hatchling editables
    "$venv/bin/python" -m pip install -qq --disable-pip-version-check \
        --no-deps --no-build-isolation --editable .
    fingerprint "$lock" >"$stamp"
}

missing=$(find_missing | tr '\n' ' ')
if [ -z "$missing" ] && is_made; then
    exit 0
fi
if [ -n "$missing" ] && { [ "$(id -u)" != 0 ] || ! has_command apt-get; }; then
    say "missing on this machine, by the names of Debian's packages: $missing"
    if has_command apt-get; then
        say "install them with: sudo apt-get install --no-install-recommends $missing"
    else
        say "install them with this system's package manager"
    fi
    say "then run this again; nothing has been changed"
    exit 3
fi
if ! [ -w . ]; then
    say "$(pwd) is not writable for $(id -un): $venv belongs there; nothing has been changed"
    exit 3
fi
mkdir -p .cache
exec 9>.cache/setup.lock
flock 9 # two makes at once: the second finds the work done
if [ -n "$missing" ]; then
    # shellcheck disable=SC2086 # a list of package names
    install_packages $missing
fi
if ! is_made; then
    make_venv
fi
