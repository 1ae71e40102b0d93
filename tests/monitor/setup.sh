#!/usr/bin/env bash
# What the tests of the monitor need besides: Debian's Prometheus and promtool, unpacked below .cache
# (no service is installed). A second run ends at once.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=$PWD/.cache/prometheus
[ ! -x "$folder/usr/bin/promtool" ] || exit 0
if ! command -v apt-get >/dev/null; then
    echo "monitor: no apt-get: without Prometheus its tests are skipped" >&2
    exit 0
fi
echo "monitor: unpacking Prometheus" >&2
rm -rf "$folder.new" && mkdir -p "$folder.new"
cd "$folder.new"
apt-get -qq update || true
apt-get -qq download prometheus 2>/dev/null
dpkg -x prometheus_*.deb .
rm prometheus_*.deb
rm -rf "$folder" && mv "$folder.new" "$folder"
