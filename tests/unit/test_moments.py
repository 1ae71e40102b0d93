"""What a recording shows of a moment, counted anew from its frames."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from qtrace.analysis import Trace
from qtrace.analysis.report import judge_opened
from qtrace.export.drawing import drawing_of
from qtrace.export.moments import Moments

SAMPLES = Path(__file__).parents[2] / "analysis/samples"
# Watching and of everything, with findings and without, with stretches of waiting.
FILES = (
    "all-pflash-7.2-kvm.parquet", "all-stranded-7.2-tcg.parquet", "all-qtest-7.2.parquet",
    "stranded-10.0-tcg.csv", "vcpu-poll-7.2-tcg.csv",
)  # fmt: skip
WINDOW_NS = 50_000_000


@pytest.mark.parametrize("name", FILES)
def test_each_moment_is_what_the_frames_say(name: str) -> None:
    trace = Trace(SAMPLES / name)
    drawn = drawing_of(trace, judge_opened([trace], lints=None))
    moments = Moments(drawn)
    runs, instances = trace.runs, trace.instances
    begin = runs["time_ns"].to_numpy()
    chosen = np.random.default_rng(1).choice(begin, min(8, len(begin)), replace=False)
    for time_ns in [drawn.begin_ns, drawn.end_ns, *(int(one) + 1 for one in chosen)]:
        moment = moments.at(time_ns, WINDOW_NS)
        window = runs[(begin > time_ns - WINDOW_NS) & (begin <= time_ns)]
        counted = Counter(window["name"].astype(str))
        told = {one.name: one.share * max(len(window), 1) for one in moment.busiest}
        assert {n: pytest.approx(c) for n, c in counted.most_common(30)}.items() <= told.items()
        assert sum(ran for _name, _count, ran in moment.contexts) == len(window)
        pending = instances[
            (instances["scheduled_ns"] <= time_ns).fillna(False)
            & ((instances["ended_ns"] > time_ns) | (instances["end"] == "")).fillna(False)
        ]
        # Of others the end is not known.
        assert len(moment.pending) <= len(pending)
        assert {one.name for one in moment.pending} <= set(pending["name"].astype(str))
        for one in moment.running:
            if one.since_ns < 0 or one.over:
                continue
            own = runs[(runs["tid"] == one.thread.tid) & (runs["time_ns"] == one.since_ns)]
            assert one.name in set(own["name"].astype(str))
            ends = own["end_ns"].dropna()
            assert ends.empty or ends.max() > time_ns


@pytest.mark.parametrize("name", FILES)
def test_a_finding_is_shown_where_it_begins(name: str) -> None:
    trace = Trace(SAMPLES / name)
    drawn = drawing_of(trace, judge_opened([trace], lints=None))
    moments = Moments(drawn)
    for finding in drawn.findings[:5]:
        found = moments.at(finding.begin_ns, WINDOW_NS)
        assert finding in found.findings
        if finding.instance is None:
            continue
        one = trace.instances.iloc[finding.instance]
        if not pd.isna(one["scheduled_ns"]) and int(one["scheduled_ns"]) == finding.begin_ns:
            assert str(one["name"]) in {waiting.name for waiting in found.pending}
