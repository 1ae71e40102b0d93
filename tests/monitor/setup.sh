#!/usr/bin/env bash
# What the tests of the monitor need besides, unpacked below .cache (no service is installed):
# Debian's Prometheus and promtool, and systemd-nspawn, which boots a systemd of this machine. A
# second run ends at once.
set -euo pipefail
cd "$(dirname "$0")/../.."
cache=$PWD/.cache

unpack() { # FOLDER PROGRAM PACKAGE...: below .cache, unless the program is there
    local folder=$cache/$1 program=$2
    shift 2
    [ ! -x "$folder/$program" ] || return 0
    if ! command -v apt-get >/dev/null; then
        echo "monitor: no apt-get: without $1 its tests are skipped" >&2
        return 0
    fi
    echo "monitor: unpacking $*" >&2
    rm -rf "$folder.new" && mkdir -p "$folder.new"
    (
        cd "$folder.new"
        apt-get -qq update || true
        apt-get -qq download "$@" 2>/dev/null
        for package in *.deb; do dpkg -x "$package" .; done
        rm ./*.deb
    )
    rm -rf "$folder" && mv "$folder.new" "$folder"
}

unpack prometheus usr/bin/promtool prometheus
unpack nspawn usr/bin/systemd-nspawn systemd-container libsystemd-shared
if [ ! -x /lib/systemd/systemd ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install systemd \
        </dev/null >/dev/null
fi
