"""Programs that do one thing and end: nobody waits for their event loop."""

from __future__ import annotations

from typing import Any

# qemu-nbd and qemu-storage-daemon have clients; these have none.
ONE_TASK = frozenset({"qemu-img", "qemu-io"})


def is_tool(header: dict[str, Any]) -> bool:
    """Whether a recording is of such a program: long callbacks and waits are its work."""
    return header["target"].get("program") in ONE_TASK
