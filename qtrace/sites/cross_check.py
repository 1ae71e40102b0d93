"""What the code shows, against debug info where there is some.

A recording of every bottom half rests on few offsets. Where the two disagree, the debug info is
another build's or the code was read wrongly: nothing is recorded then.
"""

from __future__ import annotations

from collections.abc import Mapping

from qtrace.binary.debug_layout import facts_of_debug_info
from qtrace.binary.module import Module
from qtrace.errors import ScanFailed
from qtrace.sites.all_plan import BottomHalfLayout


def check_debug_info(
    module: Module, layout: BottomHalfLayout, context_variables: Mapping[str, int]
) -> None:
    """Compare the layout of QEMUBH, and where the contexts' pointers lie.

    Args:
        context_variables: link-time addresses by context name.

    Raises ScanFailed with each difference. Without debug info there is nothing to compare.
    """
    shown = {
        "bh_ctx": layout.ctx,
        "bh_name": layout.name,
        "bh_cb": layout.callback,
        "bh_opaque": layout.opaque,
        "bh_flags": layout.flags,
        **{f"{name}_variable": at + module.bias for name, at in context_variables.items()},
    }
    told = facts_of_debug_info(module)
    differing = [
        f"{fact} {value:#x} by its code, {told[fact]:#x} by its debug info"
        for fact, value in shown.items()
        if fact in told and told[fact] != value
    ]
    if differing:
        raise ScanFailed(
            f"{module.name} cannot be recorded with --all: {'; '.join(differing)}",
            "the debug info may be another build's: remove it, or record without --all",
        )
