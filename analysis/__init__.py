"""Traces to instances to verdicts, with pandas. No bcc, no gdb, no terminal.

``read_trace("x.csv").frame`` has one row per event, ``pair_instances`` makes one row per
instance of it, ``classify`` gives each its verdict, and ``judge(["x.csv"])`` does all of it
and returns what `qtrace analyze` prints.
"""

from qtrace.analysis.instances import pair_instances
from qtrace.analysis.load import load
from qtrace.analysis.pending import pending_since
from qtrace.analysis.report import exit_status, judge
from qtrace.analysis.traces import AnalysedTrace, Traces, open_traces
from qtrace.analysis.verdicts import FINDINGS, SEVERITY, classify, worst
from qtrace.trace.reader import Trace, read_trace

__all__ = [
    "FINDINGS",
    "SEVERITY",
    "AnalysedTrace",
    "Trace",
    "Traces",
    "classify",
    "exit_status",
    "judge",
    "load",
    "open_traces",
    "pair_instances",
    "pending_since",
    "read_trace",
    "worst",
]
