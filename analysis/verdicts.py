"""The verdict of each instance, from its own rows (docs/verdicts.md)."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from qtrace.analysis.arrays import code_of, nullable
from qtrace.analysis.instances import UNSEEN
from qtrace.analysis.losses import disturbed, losses_of
from qtrace.analysis.qemu_facts import MAIN_CONTEXTS
from qtrace.analysis.stacks import PROBLEMS, facts_by_code
from qtrace.analysis.stranded import proofs
from qtrace.knowledge import WITHOUT_MAIN_LOOP
from qtrace.trace.reader import TraceFile

# Worst first. ``stuck`` is a thread's, ``request-stuck`` a block request's, no instance's.
SEVERITY = (
    "stuck", "request-stuck", "stranded", "vcpu-poll", "foreign-poll", "inconclusive", "pending",
    "nested-poll", "iothread", "main-loop", "cancelled", "deleted", "not-seen",
)  # fmt: skip
FINDINGS = frozenset({"stranded", "vcpu-poll", "foreign-poll"})

# As many events of one kind without its counterpart show that a probe is silent.
SILENT = 2
SILENT_RUN = "the probe on its run never fired"
NO_END = "it was scheduled anew, but how it had ended was not seen"
LOST = "events were lost during its life"
REASONS = (
    "", LOST, "the probes of --all were taken off before it ran",
    "the trace was cut off before it ran", SILENT_RUN, NO_END, *PROBLEMS,
    "the role of the thread that ran it is not known",
)  # fmt: skip
Mask = npt.NDArray[np.bool_]


def worst(verdicts: Iterable[str]) -> str:
    """The most severe of them, ``not-seen`` when there is none."""
    return min(verdicts, key=SEVERITY.index, default="not-seen")


def main_tid(trace: TraceFile) -> int | None:
    """The main thread's id, which is the process's; None when the header does not tell."""
    pid = trace.header["target"].get("pid")
    return pid if isinstance(pid, int) else None


def effective_role(role: pd.Series, tid: pd.Series, vcpu_frames: Mask, trace: TraceFile) -> Any:
    """The recorder's role, or a better one where the stack or the thread id shows it."""
    categories = role.cat.categories.union(["main", "vcpu", ""], sort=False)
    codes = role.cat.set_categories(categories).array.codes.copy()
    unsure = np.isin(codes, categories.get_indexer(pd.Index(["", "other"])))
    main = (tid == (main_tid(trace) or -1)).fillna(value=False).to_numpy(np.bool_)
    codes[unsure & vcpu_frames] = categories.get_loc("vcpu")
    codes[unsure & main] = categories.get_loc("main")
    return pd.Categorical.from_codes(codes, dtype=pd.CategoricalDtype(categories))


def classify(
    instances: pd.DataFrame, trace: TraceFile, silent: Collection[str] | None = None
) -> pd.DataFrame:
    """Add to each instance of ``trace`` its verdict and what that rests on.

    New columns: ``verdict``; ``reason`` (why it is inconclusive, else empty); ``role`` is
    made more exact where the stack shows it; ``deciding_frame`` and ``device_frame`` (Int16,
    positions in ``stack.split(";")``, absent where there is none). What
    proves a stranded one: ``proofs``.

    Args:
        silent: of instances that are not all of the recording, the names of the bottom halves that
            were scheduled again and again (``SILENT``), and whose run was never seen.
    """
    stranded = instances.index.isin(list(proofs(instances, trace)))
    facts = facts_by_code(instances["stack"])
    stack = instances["stack"].array.codes

    def fact(values: pd.Series, dtype: type) -> npt.NDArray[Any]:
        return np.asarray(values.to_numpy(dtype)[stack])

    def frame_column(name: str) -> pd.arrays.IntegerArray:
        """From the leaf as the facts count, to a position in the text."""
        from_leaf = facts[name].to_numpy(np.int64)
        place = np.where(from_leaf < 0, -1, facts["depth"].to_numpy(np.int64) - 1 - from_leaf)
        return nullable(place.astype(np.int16)[stack])

    end = code_of(instances["end"], ("run", "cancel", "delete"))
    ran = end == 0
    vcpu_frames = fact(facts["vcpu"], np.bool_)
    role = effective_role(instances["role"], instances["tid"], vcpu_frames, trace)
    owned_by_main = code_of(instances["context"], MAIN_CONTEXTS) >= 0
    problem = pd.Categorical(facts["problem"]).take(stack)
    reason = _doubts(instances, trace, ran, role, owned_by_main, problem, silent)
    # It was seen pending at the very end: its run probe had nothing to fire for.
    reason[stranded & (reason == REASONS.index(SILENT_RUN))] = 0

    no_main_loop = trace.header["target"].get("program") in WITHOUT_MAIN_LOOP
    who = code_of(pd.Series(role), ("main", "vcpu", "iothread"))
    main, vcpu, iothread = who == 0, who == 1, who == 2
    poll = fact(facts["dispatcher"] == "poll", np.bool_)
    loop = fact(facts["dispatcher"] == "loop", np.bool_)
    verdict = np.full(len(instances), SEVERITY.index("foreign-poll"), np.int8)
    # The last one that holds wins.
    for name, holds in (
        ("iothread", iothread & ~owned_by_main),
        ("main-loop", main & (poll | loop)),
        ("nested-poll", main & poll & (not no_main_loop)),
        ("vcpu-poll", vcpu & fact(facts["in_poll"], np.bool_)),
        ("pending", ~ran),
        ("stranded", stranded),
        ("deleted", end == 2),
        ("cancelled", end == 1),
        ("inconclusive", reason != 0),
    ):
        verdict[holds] = SEVERITY.index(name)
    return instances.assign(
        role=role,
        verdict=pd.Categorical.from_codes(
            verdict, dtype=pd.CategoricalDtype(list(SEVERITY), ordered=True)
        ),
        reason=pd.Categorical.from_codes(reason, dtype=pd.CategoricalDtype(list(REASONS))),
        deciding_frame=frame_column("deciding_frame"),
        device_frame=frame_column("device_frame"),
    )


def finding_rows(instances: pd.DataFrame, names: Iterable[str]) -> pd.DataFrame:
    """The classified instances of these bottom halves whose verdict is a finding, in time order.

    Columns: ``verdict``, ``instance`` (index into ``instances``), ``name``, ``context``,
    ``thread``, ``role``, ``tid``, ``time_ns``, ``scheduled_ns``, ``scheduled_row``,
    ``ended_row``.
    """
    own = code_of(instances["name"], tuple(dict.fromkeys(names))) >= 0
    own &= code_of(instances["verdict"], tuple(sorted(FINDINGS))) >= 0
    found = instances[own].rename(columns={"ended_ns": "time_ns"})
    found = found.assign(instance=found.index)
    columns = ["verdict", "instance", "name", "context", "thread", "role", "tid", "time_ns",
               "scheduled_ns", "scheduled_row", "ended_row"]  # fmt: skip
    return found[columns].sort_values("time_ns", kind="stable", ignore_index=True)


def _doubts(
    instances: pd.DataFrame,
    trace: TraceFile,
    ran: Mask,
    role: Any,
    owned_by_main: Mask,
    problem: Any,
    silent: Collection[str] | None,
) -> npt.NDArray[np.int8]:
    """Why nothing certain can be said of an instance, an index into REASONS; 0 where it can."""
    open_end = code_of(instances["end"], ("",)) == 0
    name = instances["name"].array.codes
    # A bottom half that was scheduled again and again, and whose run was never seen.
    if silent is None:
        quiet = _silent(instances, ran)
    else:
        quiet = np.append(instances["name"].cat.categories.isin(silent), False)
    # A thread of unknown role may be the IOThread that owns its context. The contexts of the
    # main thread have no other owner.
    unsure = code_of(pd.Series(role), ("", "other"))
    unknown = (unsure == 0) | ((unsure == 1) & ~owned_by_main)
    problems = code_of(pd.Series(problem), PROBLEMS)
    reason = np.zeros(len(instances), np.int8)
    # The last one that holds wins.
    for text, holds in (
        ("the role of the thread that ran it is not known", ran & unknown),
        *((text, ran & (problems == number)) for number, text in enumerate(PROBLEMS)),
        (SILENT_RUN, open_end & quiet[name]),
        (NO_END, code_of(instances["end"], (UNSEEN,)) == 0),
        ("the trace was cut off before it ran", open_end & (not trace.complete)),
        ("the probes of --all were taken off before it ran", open_end & _dropped(instances, trace)),
        (LOST, _lost(instances, trace)),
    ):
        reason[holds] = REASONS.index(text)
    return reason


def _silent(instances: pd.DataFrame, ran: Mask) -> Mask:
    """By the code of the name."""
    name = instances["name"].array.codes
    begun = np.bincount(name[instances["scheduled_ns"].notna().to_numpy()], minlength=1)
    runs = np.bincount(name[ran], minlength=len(begun))
    silent = np.zeros(max(len(begun), len(runs)), np.bool_)
    silent[: len(begun)] = (begun >= SILENT) & (runs[: len(begun)] == 0)
    return silent


def _is_watched(instances: pd.DataFrame, trace: TraceFile) -> Mask:
    names = tuple(dict.fromkeys(item["name"] for item in trace.header.get("watched", [])))
    return np.asarray(code_of(instances["name"], names) >= 0)


def _lost(instances: pd.DataFrame, trace: TraceFile) -> Mask:
    if trace.losses.empty:
        return np.zeros(len(instances), np.bool_)
    # Unknown ends reach to infinity.
    limits = np.iinfo(np.int64)
    born = instances["scheduled_ns"].fillna(limits.min).to_numpy(np.int64)
    died = instances["ended_ns"].fillna(limits.max).to_numpy(np.int64)
    every = disturbed(born, died, losses_of(trace, watched=False))
    own = disturbed(born, died, losses_of(trace, watched=True))
    return np.where(_is_watched(instances, trace), own, every)


def _dropped(instances: pd.DataFrame, trace: TraceFile) -> Mask:
    """Which of them only the probes of `--all` could have seen run, and these were taken off."""
    every = trace.detach.get("all")
    dropped = isinstance(every, dict) and "dropped" in every
    return ~_is_watched(instances, trace) & dropped
