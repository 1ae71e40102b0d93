"""The verdict of each instance, from its own rows (docs/verdicts.md)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pandas as pd

from qtrace.analysis.stacks import stack_facts
from qtrace.analysis.stranded import proofs
from qtrace.trace.reader import Trace

# Worst first.
SEVERITY = (
    "stranded", "vcpu-poll", "foreign-poll", "inconclusive", "pending", "nested-poll",
    "iothread", "main-loop", "cancelled", "deleted", "not-seen",
)  # fmt: skip
FINDINGS = frozenset({"stranded", "vcpu-poll", "foreign-poll"})

# Their main thread polls instead of running a main loop: there is no nesting to speak of.
WITHOUT_MAIN_LOOP = frozenset({"qemu-img", "qemu-nbd", "qemu-io"})
# Contexts that only the main loop should run.
MAIN_CONTEXTS = ("main", "iohandler")
# As many events of one kind without its counterpart show that a probe is silent.
SILENT = 2
SILENT_RUN = "the probe on its run never fired"


def worst(verdicts: Iterable[str]) -> str:
    """The most severe of them, ``not-seen`` when there is none."""
    return min(verdicts, key=SEVERITY.index, default="not-seen")


def effective_role(
    role: pd.Series, tid: pd.Series, vcpu_frames: npt.NDArray[np.bool_], pid: int
) -> npt.NDArray[np.object_]:
    """The recorder's role, or a better one where the stack or the thread id shows it."""
    known = role.astype(object).to_numpy()
    unsure = np.isin(known.astype(str), ["", "other"])
    main = (tid == pid).fillna(value=False).to_numpy(np.bool_)
    return np.select([unsure & main, unsure & vcpu_frames], ["main", "vcpu"], known).astype(object)


def classify(instances: pd.DataFrame, trace: Trace) -> pd.DataFrame:
    """Add to each instance of ``trace`` its verdict and what that rests on.

    New columns: ``verdict``; ``reason`` (why it is inconclusive, else empty); ``role`` is
    made more exact where the stack shows it; ``deciding_frame`` and ``device_frame`` (int64,
    frames from the leaf, -1 where there is none); ``proof`` (of a stranded one, else None).
    """
    shown = proofs(instances, trace)
    stranded = instances.index.isin(list(shown))
    facts = stack_facts(instances["stack"])
    ran = (instances["end"] == "run").to_numpy()
    poll = (facts["dispatcher"] == "poll").to_numpy()
    loop = (facts["dispatcher"] == "loop").to_numpy()
    pid = trace.header["target"].get("pid")
    role = effective_role(
        instances["role"],
        instances["tid"],
        facts["vcpu"].to_numpy(np.bool_),
        pid if isinstance(pid, int) else -1,
    )
    reason = _doubts(instances, trace, ran, role, facts["problem"].to_numpy(object))
    # It was seen pending at the very end: its run probe had nothing to fire for.
    reason[stranded & (reason == SILENT_RUN)] = ""

    owned_by_main = instances["context"].isin(MAIN_CONTEXTS).to_numpy()
    no_main_loop = trace.header["target"].get("program") in WITHOUT_MAIN_LOOP
    vcpu, main, iothread = role == "vcpu", role == "main", role == "iothread"
    in_poll = facts["in_poll"].to_numpy(np.bool_)
    verdict = np.select(
        [
            reason != "",
            instances["end"] == "cancel",
            instances["end"] == "delete",
            stranded,
            ~ran,
            vcpu & in_poll,
            main & poll & (not no_main_loop),
            main & (poll | loop),
            iothread & ~owned_by_main,
        ],
        [
            "inconclusive", "cancelled", "deleted", "stranded", "pending", "vcpu-poll",
            "nested-poll", "main-loop", "iothread",
        ],
        "foreign-poll",
    )  # fmt: skip
    return instances.assign(
        role=pd.Categorical(role),
        verdict=pd.Categorical(verdict, categories=SEVERITY, ordered=True),
        reason=pd.Categorical(reason),
        deciding_frame=facts["deciding_frame"].to_numpy(np.int64),
        device_frame=facts["device_frame"].to_numpy(np.int64),
        proof=pd.Series(shown, dtype=object).reindex(instances.index),
    )


def finding_rows(instances: pd.DataFrame, names: Iterable[str]) -> pd.DataFrame:
    """The classified instances of these bottom halves whose verdict is a finding, in time order.

    Columns: ``verdict``, ``instance`` (index into ``instances``), ``name``, ``context``,
    ``thread``, ``role``, ``tid``, ``time_ns``, ``scheduled_ns``, ``scheduled_row``,
    ``ended_row``.
    """
    own = instances["name"].isin(list(names)) & instances["verdict"].isin(FINDINGS)
    found = instances[own.to_numpy()].rename(columns={"ended_ns": "time_ns"})
    found = found.assign(instance=found.index)
    columns = ["verdict", "instance", "name", "context", "thread", "role", "tid", "time_ns",
               "scheduled_ns", "scheduled_row", "ended_row"]  # fmt: skip
    return found[columns].sort_values("time_ns", kind="stable", ignore_index=True)


def _doubts(
    instances: pd.DataFrame,
    trace: Trace,
    ran: npt.NDArray[np.bool_],
    role: npt.NDArray[np.object_],
    problem: npt.NDArray[np.object_],
) -> npt.NDArray[np.object_]:
    """Why nothing certain can be said of an instance; empty where it can."""
    open_end = (instances["end"] == "").to_numpy()
    names = instances["name"]
    scheduled = instances["scheduled_ns"].notna().groupby(names, observed=True).transform("sum")
    runs = pd.Series(ran, instances.index).groupby(names, observed=True).transform("sum")
    silent = ((scheduled >= SILENT) & (runs == 0)).to_numpy(np.bool_)
    # A thread of unknown role may be the IOThread that owns its context. The contexts of the
    # main thread have no other owner.
    owned_by_main = instances["context"].isin(MAIN_CONTEXTS).to_numpy()
    unknown = (role == "") | ((role == "other") & ~owned_by_main)
    return np.select(
        [
            _lost(instances, trace),
            open_end & _dropped(instances, trace),
            open_end & (not trace.complete),
            open_end & silent,
            ran & (problem != ""),
            ran & unknown,
        ],
        [
            "events were lost during its life",
            "the probes of --all were taken off before it ran",
            "the trace was cut off before it ran",
            SILENT_RUN,
            problem,
            "the role of the thread that ran it is not known",
        ],
        "",
    ).astype(object)


def losses_of(trace: Trace, watched: bool) -> pd.DataFrame:
    """The losses that concern a bottom half: a watched one has probes of its own."""
    if not watched or "every" not in trace.losses:
        return trace.losses
    return trace.losses[~trace.losses["every"].to_numpy(np.bool_)]


def _is_watched(instances: pd.DataFrame, trace: Trace) -> npt.NDArray[np.bool_]:
    names = [item["name"] for item in trace.header.get("watched", [])]
    return np.asarray(instances["name"].isin(names), dtype=np.bool_)


def _lost(instances: pd.DataFrame, trace: Trace) -> npt.NDArray[np.bool_]:
    return np.where(
        _is_watched(instances, trace),
        _overlaps(instances, losses_of(trace, watched=True)),
        _overlaps(instances, losses_of(trace, watched=False)),
    )


def _dropped(instances: pd.DataFrame, trace: Trace) -> npt.NDArray[np.bool_]:
    """Which of them only the probes of `--all` could have seen run, and these were taken off."""
    every = trace.detach.get("all")
    dropped = isinstance(every, dict) and "dropped" in every
    return ~_is_watched(instances, trace) & dropped


def _overlaps(instances: pd.DataFrame, losses: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Which instances lived while events were lost. Unknown ends reach to infinity."""
    if losses.empty:
        return np.zeros(len(instances), dtype=np.bool_)
    limits = np.iinfo(np.int64)
    born = instances["scheduled_ns"].fillna(limits.min).to_numpy(np.int64)
    died = instances["ended_ns"].fillna(limits.max).to_numpy(np.int64)
    ordered = losses.sort_values("since_ns")
    began = ordered["since_ns"].searchsorted(died, side="right")
    # The latest end among the losses that began before it died.
    latest = np.maximum.accumulate(ordered["until_ns"].to_numpy(np.int64))
    return np.asarray((began > 0) & (latest[np.maximum(began, 1) - 1] >= born), dtype=np.bool_)
