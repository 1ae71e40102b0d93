#!/usr/bin/env bash
# Unpack a second QEMU (bookworm-backports) below .cache/qemu-backports, for the tests.
#
# apt does the work with a source list, state and cache of its own: the machine's
# settings and packages stay as they are. QEMU finds its data and modules relative to
# its own executable, so that the unpacked tree runs where it lies.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
dest=$root/.cache/qemu-backports
binary=$dest/usr/bin/qemu-system-x86_64
packages="qemu-system-x86 qemu-utils"

if [ -x "$binary" ] && [ -e "$dest/.complete" ]; then
    exit 0
fi
if ! command -v apt-get >/dev/null 2>&1; then
    echo "qemus: apt-get is missing: the second QEMU comes from Debian's bookworm-backports" >&2
    echo "qemus: put any other QEMU at $binary, or run the tests on the installed one only" >&2
    exit 1
fi

# The mirror is the one this machine already uses for its own packages.
mirror=$(apt-get indextargets --format '$(REPO_URI) $(ORIGIN) $(CODENAME)' |
    awk '$2 == "Debian" && $3 == "bookworm" { print $1; exit }')
if [ -z "$mirror" ]; then
    echo "qemus: this machine's apt has no Debian 12 (bookworm) source to take the mirror from" >&2
    exit 1
fi
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
rm -rf "$dest"
apt=$root/.cache/apt
mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$dest"
for suite in bookworm bookworm-backports; do
    echo "deb [signed-by=$keyring] $mirror $suite main"
done >"$apt/sources.list"
private=(
    -o "Dir::Etc::sourcelist=$apt/sources.list" -o Dir::Etc::sourceparts=/dev/null
    -o Dir::Etc::preferencesparts=/dev/null -o "Dir::State::lists=$apt/lists"
    -o "Dir::Cache=$apt/cache" -o "Dir::Cache::archives=$apt/cache/archives"
    -o APT::Sandbox::User=root -o APT::Get::List-Cleanup=0
    -o Debug::NoLocking=1 -o APT::Install-Recommends=0
)
echo "qemus: fetching QEMU from bookworm-backports into ${dest#"$root"/}"
apt-get "${private[@]}" -qq update
# --download-only fetches just what this machine lacks; nothing is installed.
apt-get "${private[@]}" -qq -y --download-only --no-remove -t bookworm-backports install $packages >/dev/null
for deb in "$apt"/cache/archives/*.deb; do
    dpkg-deb -x "$deb" "$dest"
done
rm -rf "$apt"

# The unpacked QEMU needs newer libraries than the machine has: name their folder.
libraries=$dest/usr/lib/x86_64-linux-gnu
missing=$(LD_LIBRARY_PATH=$libraries ldd "$binary" | awk '/not found/ { print $1 }')
if [ -n "$missing" ]; then
    echo "qemus: libraries missing for $binary: $missing" >&2
    exit 1
fi
"$binary" --version >/dev/null || {
    echo "qemus: $binary does not start" >&2
    exit 1
}
touch "$dest/.complete"
"$binary" --version | head -n 1
