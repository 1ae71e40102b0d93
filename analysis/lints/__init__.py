"""The lints: one module each, loaded when it is first asked for.

Adding one is one module that defines ``LINT`` (``long-callback`` is ``long_callback``), and its
name here.
"""

from __future__ import annotations

import importlib

from qtrace.analysis.lint import Lint

LINTS = (
    "wrong-thread", "nested-loop", "stranded", "stuck-wait", "long-callback", "busy-loop", "storm",
    "lost-schedule", "vm-stop", "starvation", "late-reply", "guest-polls", "head-of-line",
    "exposure",
)  # fmt: skip


def find(name: str) -> Lint:
    """The lint of that name, which must be one of ``LINTS``."""
    lint: Lint = importlib.import_module(f"{__name__}.{name.replace('-', '_')}").LINT
    return lint
