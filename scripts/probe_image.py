"""Compile probes/ into probes/prebuilt.json, which recording loads: ``make probes``.

To be run after each change of a source there, on Debian 12, whose bcc the tests compare it with.
Needs root, bcc and kernel headers.
"""

from __future__ import annotations

import json

from qtrace.record.ebpf.bpf_compiler import compile_image, compiler
from qtrace.record.ebpf.bpf_image import PREBUILT, PROGRAMS, pack


def main() -> None:
    packed = pack({file: compile_image(file) for file in PROGRAMS}, compiler())
    PREBUILT.write_text(json.dumps(packed) + "\n")


if __name__ == "__main__":
    main()
