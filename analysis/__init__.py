"""Traces to frames to verdicts, with pandas. No bcc, no gdb, no terminal (docs/analysis.md).

``open_traces("x.csv")`` gives the frames: ``events``, ``instances``, ``runs``, ``commands``,
``jobs``, ``contexts``, ``threads``, ``findings``. ``judge("x.csv")`` returns what `qtrace analyze`
prints, ``timelines(traces)`` what `--commands` does, ``compare("before/", "after/")`` what `qtrace
diff` does. ``pictures`` draws; it is loaded when it is first asked for, as nothing else needs
matplotlib.
"""

import importlib
from types import ModuleType

from qtrace.analysis.comparison import compare
from qtrace.analysis.instances import pair_instances
from qtrace.analysis.report import exit_status, judge
from qtrace.analysis.report_types import Report
from qtrace.analysis.summarise import summarise
from qtrace.analysis.summary import Summary
from qtrace.analysis.timeline import timelines
from qtrace.analysis.traces import Trace, Traces, open_traces, pending_since
from qtrace.analysis.verdicts import FINDINGS, SEVERITY, classify, worst
from qtrace.analysis.watched import judge_watched

__all__ = [
    "FINDINGS",
    "SEVERITY",
    "Report",
    "Summary",
    "Trace",
    "Traces",
    "classify",
    "compare",
    "exit_status",
    "judge",
    "judge_watched",
    "open_traces",
    "pair_instances",
    "pending_since",
    "summarise",
    "timelines",
    "worst",
]


def __getattr__(name: str) -> ModuleType:
    if name == "pictures":
        return importlib.import_module(f"{__name__}.pictures")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
