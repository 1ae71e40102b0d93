#!/usr/bin/env bash
# What the tests of the fleet need besides: Dask, s3fs and an S3 server, by PyPI, below .cache (s3fs
# and .venv disagree about python-dateutil). A second run ends at once.
set -euo pipefail
cd "$(dirname "$0")/../.."
lock=tests/fleet/requirements.txt
place=.cache/fleet
if ! cmp -s "$lock" "$place/requirements.txt"; then
    echo "fleet: installing $lock into $place" >&2
    rm -rf "$place" "$place.new"
    .venv/bin/python -m pip install -qq --disable-pip-version-check --target "$place.new" -r "$lock"
    cp "$lock" "$place.new/requirements.txt"
    mv "$place.new" "$place"
fi
