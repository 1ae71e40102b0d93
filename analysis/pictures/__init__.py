"""Pictures of recordings, made for reading: lanes, latencies, replies, shares, what is stranded.

Need matplotlib (the ``notebook`` extra); nothing else in the package does. Each function returns
a figure that is not shown and belongs to no backend.
"""

from qtrace.analysis.pictures.lanes import swim_lanes, window
from qtrace.analysis.pictures.latency import by_role, side_by_side
from qtrace.analysis.pictures.reply import reply_timeline
from qtrace.analysis.pictures.shares import shares, shares_of
from qtrace.analysis.pictures.stranded import stranded_timeline

__all__ = [
    "by_role",
    "reply_timeline",
    "shares",
    "shares_of",
    "side_by_side",
    "stranded_timeline",
    "swim_lanes",
    "window",
]
