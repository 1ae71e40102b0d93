"""Where nothing is stuck: who is connected to a QEMU and waits, and what its processors do."""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator

from qtrace.host.descriptors import Descriptor, Descriptors
from qtrace.inspection.looker import Looker
from qtrace.inspection.outside import bystanders, with_outside
from qtrace.inspection.request_look import Requests
from qtrace.machine.memory import Memory
from qtrace.qemu.aio.mechanics import VCPU_IDLE
from qtrace.qemu.aio.model import Look, Thread
from qtrace.qemu.aio.waits import asleep_ns, has_loop, in_words, is_polling, is_unmoved
from qtrace.qemu.block.remarks import RUNNING
from qtrace.units import show

# virt/kvm/kvm_main.c: where a halted vCPU sleeps inside of KVM_RUN.
KVM_HALTED = ("kvm_vcpu_block", "kvm_vcpu_halt")
# A vCPU thread that sleeps elsewhere for so long keeps the guest waiting.
LONG_SLEEP_NS = 500_000_000
# Thirty times the default (IOTHREAD_POLL_MAX_NS_DEFAULT): an IOThread that is asked for something
# a thousand times a second never sleeps.
LONG_POLL_NS = 1_000_000


def surroundings(
    looker: Looker,
    look: Look,
    run_state: str,
    descriptors: Descriptors,
    requests: Requests | None = None,
    told: Collection[int] = (),
) -> Iterator[str]:
    """Where nothing is found: what tells where to look, in words.

    Args:
        run_state: as in QMP; empty where it does not show.
        descriptors: the QEMU's, now.
        requests: those of this QEMU; they lead into the QEMU programs that it is connected to.
        told: the processes that are told of already.
    """
    late, others = processors(looker, look) if run_state == RUNNING else ([], [])
    # That the guest stands still says most.
    yield from late
    yield from connections(descriptors, told)
    if requests is not None:
        yield from behind_peers(descriptors, requests, told)
    if looker.layout.ctx_poll_max_ns is not None:
        yield from pollers(look, looker.source.memory, looker.layout.ctx_poll_max_ns)
    yield from others


def kept_waiting(looker: Looker, look: Look) -> list[str]:
    """Of a program without a main loop (qemu-img), or one that has not come to it: that it polls
    while another thread of it waits for an outsider, as whoever makes an NBD connection. It may be
    just that for which it polls."""
    main = next((thread for thread in look.threads if thread.role == "main"), None)
    if main is None or has_loop(look, main) or not is_polling(main):
        return []
    shown = with_outside(looker, look, bystanders(look))
    return [
        f"{main.label} {in_words(look, main)}, while for at least "
        f"{show(asleep_ns(shown, other), 'ns')} {other.label} {in_words(shown, other)}"
        for other in shown.threads
        if other.outside and asleep_ns(shown, other) >= LONG_SLEEP_NS
    ]


def connections(descriptors: Descriptors, told: Collection[int]) -> Iterator[str]:
    """Clients that are not accepted, with whom is served meanwhile; and processes at the other ends
    that do not move."""
    for one in descriptors.with_somebody:
        if one.relation == "which has not accepted yet":
            clients = " and ".join(peer.text for peer in one.peers)
            served = [_peers(o) for o in descriptors.connected_to(one.name) if o.peers]
            text = f"unix socket {one.name} has not accepted {clients}"
            yield text + (f", while it serves {' and '.join(served)}" if served else "")
        elif any(p.held or p.hangs for p in one.peers if p.pid not in told):
            what = "does not take what it is sent" if one.unread else "cannot answer"
            yield f"{what}: {one.text}"


def behind_peers(
    descriptors: Descriptors, requests: Requests, told: Collection[int]
) -> Iterator[str]:
    """What QEMU programs that this one is connected to have in hand, and cannot do."""
    seen = set(told)
    for one in descriptors.with_somebody:
        for peer in one.peers:
            if peer.pid not in seen:
                yield from (f"{one.text}, which has in hand: {t}" for t in requests.kept_by(peer))
            seen.add(peer.pid)


def pollers(look: Look, memory: Memory, offset: int) -> Iterator[str]:
    """IOThreads that keep a processor busy between two events.

    Args:
        offset: where an AioContext has how long its loop polls before it sleeps.
    """
    for context in look.contexts:
        raw = memory.read(context.address + offset, 8)
        longest = struct.unpack("<q", raw)[0] if len(raw) == 8 else 0
        if context.name.startswith("iothread:") and longest >= LONG_POLL_NS:
            length = show(longest, "ns")
            yield (
                f"the loop of {context.quoted} polls for up to {length} before it sleeps "
                "(poll-max-ns): that takes a processor"
            )


def processors(looker: Looker, look: Look) -> tuple[list[str], list[str]]:
    """What the guest's processors do: those that wait for somebody else, and whether the others
    run, or wait for an interrupt."""
    vcpus = [thread for thread in look.threads if thread.role == "vcpu"]
    halted = [thread for thread in vcpus if is_halted(thread)]
    late = late_vcpus(looker, look)
    told = [text for _thread, _lasted_ns, text in late]
    if vcpus and len(halted) == len(vcpus):
        count = "the guest's vCPU is" if len(vcpus) == 1 else f"all {len(vcpus)} vCPUs are"
        # kvm_arch_async_page_not_present() lets a vCPU halt for a page that the host has to bring.
        in_kvm = any(thread.wchan.startswith(KVM_HALTED) for thread in halted)
        page = ", or for a page of its memory that the host brings" if in_kvm else ""
        return told, [f"{count} halted: the guest is idle, or waits for an interrupt{page}"]
    if len(late) + len(halted) < len(vcpus):
        moving = f"{len(vcpus) - len(late) - len(halted)} of {len(vcpus)}"
        return told, [f"the guest runs: {moving} vCPUs are not halted"]
    return told, []


def late_vcpus(
    looker: Looker, look: Look, earlier: Look | None = None
) -> list[tuple[Thread, int, str]]:
    """The vCPU threads that sleep elsewhere than where they are halted, for how many nanoseconds
    at least, and in what, in words.

    Args:
        earlier: who has not run since that look has slept since then. (The scheduler, which knows
            it better, may not be asked in time on a crowded host.)
    """
    asleep = {t.tid for t in look.threads if t.role == "vcpu" and t.blocked_in and not is_halted(t)}
    shown = with_outside(looker, look, asleep)
    found = []
    for thread in shown.threads:
        lasted_ns = asleep_ns(shown, thread) if thread.tid in asleep else 0
        before = earlier.thread(thread.tid) if earlier and thread.tid in asleep else None
        if earlier and before and is_unmoved(before, thread):
            lasted_ns = max(lasted_ns, look.time_ns - earlier.time_ns)
        if lasted_ns >= LONG_SLEEP_NS:
            text = f"has not run for at least {show(lasted_ns, 'ns')}: it {in_words(shown, thread)}"
            found.append((thread, lasted_ns, f"vCPU thread {thread.label} {text}"))
    return found


def is_halted(thread: Thread) -> bool:
    """Whether a vCPU thread waits for an interrupt, in QEMU's loop or in KVM's."""
    if thread.wchan.startswith(KVM_HALTED):
        return True
    return bool(thread.blocked_in) and any(VCPU_IDLE.match(f) for f in thread.functions)


def _peers(one: Descriptor) -> str:
    return " and ".join(peer.text for peer in one.peers)
