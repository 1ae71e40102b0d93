"""The finding in one sentence, for each hang of this family, and none for what goes on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from qtrace.qemu.aio.findings import (
    MOVING_NS,
    computing,
    confirm,
    explain,
    goes_round,
    keeping_big_lock,
    may_come_and_go,
    suspects,
)
from qtrace.qemu.aio.inconclusive import still_unclear, unclear
from qtrace.qemu.aio.model import (
    PAGE_FAULT,
    BottomHalf,
    Context,
    Ending,
    Futex,
    Job,
    Look,
    Poll,
    Thread,
)

MAIN_TID, VCPU_TID, OTHER_TID = 1234, 1235, 1236
MAIN, IOHANDLER, OWN = (
    Context(0x10, "main", MAIN_TID), Context(0x20, "iohandler", MAIN_TID),
    Context(0x30, "iothread:io0", OTHER_TID),
)  # fmt: skip
START = ("qemu_main_loop+0x1", "qemu_default_main+0x5", "main+0x5", "__libc_start_main+0x8")
LOOP = ("ppoll+0xa6", "qemu_poll_ns+0x6e", "main_loop_wait+0x15e", *START)
SHUTDOWN = ("qemu_cleanup+0x1f", "qemu_default_main+0xd", "main+0x5", "_start+0x21")
IN_JOB = ("ppoll+0xa6", "qemu-system-x86_64@0x1", "aio_poll+0x357",
          "job_finish_sync_locked+0x80", "job_cancel_sync_all+0x40", *SHUTDOWN)  # fmt: skip
PAUSING = ("__futex_abstimed_wait_common+0xc6", "pthread_cond_wait+0x1e8",
           "qemu_cond_wait_impl+0x4b", "pause_all_vcpus+0xf0", "vm_shutdown+0x74",
           *SHUTDOWN)  # fmt: skip
IN_PFLASH = ("ppoll+0xa6", "aio_poll+0x357", "qemu-system-x86_64@0x2", "blk_pwrite+0xd0",
             "memory_region_dispatch_write+0xe9", "cpu_exec+0x419")  # fmt: skip
TAKING_BQL = ("__lll_lock_wait+0x2b", "pthread_mutex_lock+0x112", "qemu_mutex_lock_impl+0x43",
              "bql_lock_impl+0x46", "main_loop_wait+0x176", *START)  # fmt: skip


def main_thread(frames: tuple[str, ...], *polls: Poll, **changes: Any) -> Thread:
    columns = {"blocked_in": "ppoll", "whole": True, "waits_at": (1, 2), "cpu_ns": 5} | changes
    return Thread(MAIN_TID, "qemu-system-x86", "main", frames=frames, polls=polls, **columns)


def vcpu(frames: tuple[str, ...] = IN_PFLASH, **changes: Any) -> Thread:
    polls = (Poll(MAIN.address, 1),) if "aio_poll+0x357" in frames else ()
    columns: dict[str, Any] = {"blocked_in": "ppoll", "cpu_ns": 6, **changes}
    return Thread(VCPU_TID, "CPU 0/TCG", "vcpu", frames=frames, whole=True, polls=polls, **columns)


GLIB = ("poll+0x4f", "libglib-2.0.so.0@0x5", "g_main_loop_run+0x6f", "qemu-system-x86_64@0x3")


def io_thread(frames: tuple[str, ...]) -> Thread:
    return Thread(OTHER_TID, "IO io0", "iothread", "poll", frames=frames, whole=True)


RUNNING_VCPU = Thread(VCPU_TID, "CPU 0/TCG", "vcpu", "")


def half(name: str, ctx: Context, opaque: int = 0x55, flags: int = 11) -> BottomHalf:
    return BottomHalf(0x1000 + opaque, ctx.address, name, 0x9000, opaque, flags)


SAVE = half("snapshot_save_job_bh", IOHANDLER)


def look(*threads: Thread, halves: tuple[BottomHalf, ...] = (SAVE,), **changes: Any) -> Look:
    columns: dict[str, Any] = {"time_ns": 1_000_000_000, "bql_holder": MAIN_TID, **changes}
    return Look(contexts=(MAIN, IOHANDLER, OWN), bottom_halves=halves, threads=threads, **columns)


def sentences(seen: Look) -> list[str]:
    return [finding.sentence for finding in explain(seen)]


STRANDED = look(main_thread(IN_JOB, Poll(MAIN.address, 2)))


def test_the_strand_of_the_proposed_fix() -> None:
    assert sentences(STRANDED) == [
        "snapshot_save_job_bh is stranded in `iohandler`: the only thread that runs it, "
        "1234 (main), waits in job_finish_sync_locked < job_cancel_sync_all < qemu_cleanup, "
        "polling `main`"
    ]
    (finding,) = explain(STRANDED)
    assert finding.kind == "stranded"
    assert finding.proof == ""


def test_a_circle_of_waiting_is_a_proof_by_itself() -> None:
    job = Job(0x55, "save0", "snapshot-save", "running", 0x77)
    (finding,) = explain(replace(STRANDED, jobs=(job,)))
    assert "job 'save0', which it waits for, needs just this bottom half" in finding.sentence
    assert finding.proof
    several = (job, Job(0x66, "other", "backup", "running", 0x78))
    assert explain(replace(STRANDED, jobs=several))[0].proof == ""


def test_the_hang_of_quit_names_the_vcpu_that_main_waits_for() -> None:
    seen = look(main_thread(PAUSING), vcpu(), bql_holder=VCPU_TID)
    assert sentences(seen) == [
        "the main loop does not run: "
        "1234 (main) waits in pause_all_vcpus < vm_shutdown < qemu_cleanup, for vCPU thread "
        "1235 (CPU 0/TCG), which waits in blk_pwrite < memory_region_dispatch_write < cpu_exec, "
        "polling `main`, holding the BQL; behind it wait snapshot_save_job_bh in `iohandler`"
    ]
    assert [f.bottom_halves for f in explain(seen, SAVE.name)] == [(SAVE,)]


def test_without_anything_pending_a_nested_poll_is_told_as_a_stuck_main_loop() -> None:
    (finding,) = explain(look(main_thread(IN_JOB, Poll(MAIN.address, 2)), halves=()))
    assert finding.kind == "stuck"
    assert finding.sentence.startswith("the main loop does not run: 1234 (main) waits in job_")


def test_the_cause_comes_first_and_what_merely_queues_behind_it_after_it() -> None:
    halves = (
        SAVE,
        half("do_qmp_dispatch_bh", IOHANDLER, 1),
        half("do_qmp_dispatch_bh", IOHANDLER, 2),
    )
    (sentence,) = sentences(replace(STRANDED, bottom_halves=halves))
    assert sentence.startswith(
        "snapshot_save_job_bh is stranded in `iohandler`: the only thread that runs it, "
    )
    assert sentence.endswith("; behind it wait do_qmp_dispatch_bh (2 times) in `iohandler`")


def test_only_the_named_one_is_explained_when_asked_for() -> None:
    assert [f.bottom_halves for f in explain(STRANDED, SAVE.name)] == [(SAVE,)]
    assert explain(STRANDED, "another_bh") == []


@pytest.mark.parametrize(
    "seen",
    [
        look(main_thread(LOOP)),
        look(main_thread((LOOP[0], *LOOP[2:]))),
        look(main_thread((), blocked_in="")),
        look(io_thread(GLIB), halves=(half("x", OWN),)),
        look(main_thread(IN_JOB, Poll(IOHANDLER.address, 2)), main_loop=False),
        look(main_thread(IN_JOB, Poll(MAIN.address, 2)), halves=(half("x", MAIN),),
             main_loop=False),
        look(main_thread(IN_JOB, Poll(0, 2)), main_loop=False),
        look(main_thread(IN_JOB, Poll(MAIN.address, 2), whole=False)),
    ],
    ids=[
        "in the main loop", "in it without a timer", "running", "in glib's loop",
        "polls the very context", "polls it, main", "unknown poll",
        "half a chain",
    ],
)  # fmt: skip
def test_what_goes_on_is_no_finding(seen: Look) -> None:
    assert explain(seen) == []


def test_what_a_vcpu_may_run_is_not_stranded() -> None:
    on_main = (half("x", MAIN),)
    polling = look(main_thread(PAUSING), vcpu(), halves=on_main)
    running = look(main_thread(PAUSING), RUNNING_VCPU, halves=on_main, bql_holder=VCPU_TID)
    assert explain(polling, "x") == explain(running, "x") == []
    assert [f.bottom_halves for f in explain(polling)] == [()]


IN_LSEEK_OF_A_TOOL = ("lseek+0x7", "bdrv_co_block_status_above+0x2a", "main+0x5")


@pytest.mark.parametrize(
    ("end", "whose"),
    [(IN_LSEEK_OF_A_TOOL[2:], "the program"), (("aio_dispatch+0x53", *LOOP[2:]), "the main loop")],
    ids=["qemu-img", "qemu-nbd"],
)
def test_a_program_whose_name_shows_no_loop_is_stuck_where_it_does_not_poll(
    end: tuple[str, ...], whose: str
) -> None:
    """qemu-img goes from one thing to the next, and polls where it waits; qemu-nbd has a loop."""
    asleep = main_thread((*IN_LSEEK_OF_A_TOOL[:2], *end), blocked_in="lseek")
    (finding,) = explain(look(asleep, halves=(), main_loop=False))
    assert finding.kind == "stuck"
    assert finding.sentence.startswith(f"{whose} does not run: 1234 (main) waits in lseek < bdrv_")
    assert explain(look(main_thread((), blocked_in=""), halves=(), main_loop=False)) == []
    polling = main_thread(("ppoll+0xa6", "aio_poll+0x357", "blk_pread+0x1", *end[-1:]),
                          Poll(MAIN.address, 1))  # fmt: skip
    assert explain(look(polling, halves=(), main_loop=False)) == []


def test_a_command_is_one_that_a_monitor_was_given() -> None:
    """qemu_init() calls the functions of QMP commands for its command line, too."""
    inner = ("ppoll+0xa6", "aio_poll+0x357", "bdrv_open+0x21", "qmp_blockdev_add+0x2a")
    start = ("qemu_init+0x1d", "main+0x5")
    poll = Poll(MAIN.address, 1)
    (of_qemu,) = explain(look(main_thread((*inner, *start), poll), halves=()))
    assert of_qemu.command == ""
    (asked,) = explain(
        look(main_thread((*inner, "qmp_marshal_blockdev_add+0x9", *START), poll), halves=())
    )
    assert asked.command == "QMP blockdev-add"


@pytest.mark.parametrize("flags", [9, 15, 19], ids=["cancelled", "deleted", "idle"])
def test_what_will_not_run_or_counts_for_nothing_is_not_stranded(flags: int) -> None:
    seen = replace(STRANDED, bottom_halves=(half("x", IOHANDLER, flags=flags),), main_loop=False)
    assert explain(seen) == []


def test_a_callback_of_an_iothreads_that_sleeps_keeps_what_is_pending_there() -> None:
    asleep = io_thread(("poll+0x4f", "some_callback+0x3", "g_main_context_dispatch+0x1", *GLIB[1:]))
    (sentence,) = sentences(look(asleep, halves=(half("x", OWN),)))
    assert (
        sentence
        == "the loop of `iothread:io0` does not run: 1236 (IO io0) waits in some_callback; "
        "behind it wait x in `iothread:io0`"
    )


def test_waiting_for_a_bql_whose_holder_sleeps_is_a_finding() -> None:
    seen = look(main_thread(TAKING_BQL), vcpu(), bql_holder=VCPU_TID)
    (sentence,) = sentences(seen)
    assert "for the BQL of 1235 (CPU 0/TCG), which waits in blk_pwrite" in sentence


IN_TPM = ("recvmsg+0x57", "qemu_chr_fe_read_all+0xf9", "memory_region_dispatch_read+0xa1",
          "kvm_cpu_exec+0x2b5", "kvm_vcpu_thread_fn+0x9a")  # fmt: skip


def test_who_sleeps_with_the_bql_is_a_finding_while_the_main_loop_sleeps() -> None:
    keeper = vcpu(IN_TPM, blocked_in="recvmsg", outside="on fd 3, whose other end is stopped")
    seen = look(main_thread(LOOP), keeper, bql_holder=VCPU_TID, halves=())
    (finding,) = confirm(seen, later(seen))
    assert finding.kind == "stuck"
    assert finding.sentence == (
        "nobody gets the BQL: vCPU thread 1235 (CPU 0/TCG) waits in recvmsg < "
        "qemu_chr_fe_read_all < memory_region_dispatch_read < kvm_cpu_exec < kvm_vcpu_thread_fn, "
        "holding the BQL, on fd 3, whose other end is stopped; the main loop sleeps, and will wait "
        "when it wakes up"
    )
    moved = vcpu(IN_TPM, blocked_in="recvmsg", cpu_ns=7)
    assert confirm(seen, later(seen, threads=(main_thread(LOOP), moved))) == []
    # Whoever waits for it is told, with it.
    (of_main,) = explain(replace(seen, threads=(main_thread(TAKING_BQL), keeper)))
    assert of_main.thread.role == "main"


def test_who_polls_or_runs_with_the_bql_shows_nothing_in_one_look() -> None:
    polling = look(main_thread(LOOP), vcpu(), bql_holder=VCPU_TID, halves=())
    running = look(main_thread(LOOP), RUNNING_VCPU, bql_holder=VCPU_TID, halves=())
    assert explain(polling) == explain(running) == []
    assert [one.tid for one in suspects(running)] == [VCPU_TID]
    assert suspects(polling) == []


def test_who_moves_and_was_never_seen_without_the_bql_keeps_it_in_one_call() -> None:
    write = ("qemu_chr_write+0x91", "memory_region_dispatch_write+0xe9", "kvm_cpu_exec+0x2b5")
    inner = [("clock_nanosleep+0x1", "g_usleep+0x2"), ("writev+0x1",), ()]
    stacks = [vcpu((*frames, *write)) for frames in inner]
    keeper = replace(RUNNING_VCPU, outside="for device isa-debugcon")
    finding = keeping_big_lock(keeper, stacks, 70, 2_500_000_000)
    assert finding is not None
    assert (finding.kind, finding.at_least_ns) == ("stuck", 2_500_000_000)
    assert finding.sentence == (
        "nobody gets the BQL: vCPU thread 1235 (CPU 0/TCG) holds it whenever it is looked at, in "
        "qemu_chr_write < memory_region_dispatch_write, for device isa-debugcon; the main loop "
        "sleeps, and will wait when it wakes up"
    )
    # One call after another, by the guest's code.
    others = [*stacks, vcpu(("memory_region_dispatch_read+0xa1", "kvm_cpu_exec+0x2b5"))]
    assert keeping_big_lock(keeper, others, 70, 2_500_000_000) is None
    assert may_come_and_go(others)
    assert not may_come_and_go(stacks)
    assert not may_come_and_go(others[:1])
    translated = [vcpu((*one, "code_gen_buffer+0x7", "cpu_exec+0x419")) for one in (("a+0x1",), ())]
    assert keeping_big_lock(keeper, translated, 70, 2_500_000_000) is None


def later(seen: Look, ns: int = 700_000_000, **changes: Any) -> Look:
    return replace(seen, time_ns=seen.time_ns + ns, **changes)


def test_two_looks_confirm_what_stays() -> None:
    (finding,) = confirm(STRANDED, later(STRANDED))
    assert finding.looks == 2
    assert finding.proof == (
        "seen twice, 0.7 s apart, with the same waiting frames; it was given no processor in "
        "between"
    )
    assert finding.at_least_ns == 700_000_000


def test_a_new_bottom_half_or_another_wait_is_not_confirmed() -> None:
    new = (replace(SAVE, address=0x7777),)
    assert confirm(STRANDED, later(STRANDED, bottom_halves=new)) == []
    moved = (main_thread(IN_JOB, Poll(MAIN.address, 2), waits_at=(1, 3)),)
    assert confirm(STRANDED, later(STRANDED, threads=moved)) == []
    gone = (main_thread(LOOP),)
    assert confirm(STRANDED, later(STRANDED, threads=gone)) == []


def test_outside_of_a_poll_the_thread_must_not_have_run() -> None:
    seen = look(main_thread(PAUSING))
    assert len(confirm(seen, later(seen))) == 1
    assert confirm(seen, later(seen, threads=(main_thread(PAUSING, cpu_ns=9),))) == []
    unknown = look(main_thread(PAUSING, cpu_ns=0))
    assert confirm(unknown, later(unknown)) == []


def test_that_nothing_moves_in_a_stopped_process_confirms_nothing() -> None:
    assert confirm(STRANDED, later(STRANDED, held="stopped by a signal")) == []
    assert confirm(replace(STRANDED, held="stopped by a signal"), later(STRANDED)) == []


@pytest.mark.parametrize("changes", [{"cpu_ns": 7}, {"turns": 3}], ids=["time", "turns"])
def test_behind_a_thread_that_moves_more_time_must_lie_between_the_looks(
    changes: dict[str, int],
) -> None:
    seen = look(main_thread(PAUSING), vcpu(), bql_holder=VCPU_TID)
    assert len(confirm(seen, later(seen))) == 1
    threads = (main_thread(PAUSING), vcpu(**changes))
    assert confirm(seen, later(seen, threads=threads)) == []
    assert len(confirm(seen, later(seen, 2_000_000_000, threads=threads))) == 1


@pytest.mark.parametrize("holder", [VCPU_TID, 0, None], ids=["a vCPU", "nobody", "unknown"])
def test_whoever_has_the_lock_who_has_not_moved_for_two_seconds_is_stuck(
    holder: int | None,
) -> None:
    """A holder that retries a write for ever runs all the time."""
    waits = {"blocked_in": "futex", "turns": 3}
    seen = look(main_thread(TAKING_BQL, **waits), RUNNING_VCPU, bql_holder=holder)
    (finding,) = confirm(seen, later(seen, 2_000_000_000))
    assert (finding.kind, finding.thread.tid) == ("stuck", MAIN_TID)
    turned = (main_thread(TAKING_BQL, **waits | {"turns": 4}), RUNNING_VCPU)
    assert confirm(seen, later(seen, 2_000_000_000, threads=turned)) == []


def test_who_was_seen_to_sleep_elsewhere_between_the_looks_did_not_stay() -> None:
    polls = (Poll(MAIN.address, 2),)
    seen = look(main_thread(IN_JOB, *polls))
    now = later(seen, 2_000_000_000, threads=(main_thread(IN_JOB, *polls, cpu_ns=6),))
    assert len(confirm(seen, now)) == 1
    assert confirm(seen, now, between={MAIN_TID: [main_thread(LOOP, waits_at=(9, 9))]}) == []
    runs = main_thread((), blocked_in="")
    assert len(confirm(seen, now, between={MAIN_TID: [runs]})) == 1


def lock(owner: int, word: int = 2, address: int = 0x7700) -> dict[str, Any]:
    return {"blocked_in": "futex", "futex": Futex(address, word, owner)}


TAKING = ("__lll_lock_wait+0x2b", "pthread_mutex_lock+0x112", "qemu_mutex_lock_impl+0x43")
IN_CONTEXT_LOCK = (
    *TAKING,
    "aio_context_acquire+0x4",
    "qmp_block_resize+0x1",
    "qmp_marshal_block_resize+0x1",
    *LOOP[2:],
)
IN_LSEEK = ("lseek64+0xb", "qemu-system-x86_64@0x5", "aio_bh_poll+0xc6", "aio_poll+0x350",
            "qemu-system-x86_64@0x3", "start_thread+0x1")  # fmt: skip


def test_any_mutex_is_followed_to_its_owner_and_to_what_that_one_waits_for() -> None:
    main = main_thread(IN_CONTEXT_LOCK, **lock(OTHER_TID))
    owner = replace(
        io_thread(IN_LSEEK), blocked_in="lseek", polls=(Poll(OWN.address, 3),), cpu_ns=4
    )
    seen = look(main, owner, halves=())
    assert sentences(seen) == [
        "the main loop does not run: 1234 (main), in QMP block_resize, waits in "
        "aio_context_acquire < qmp_block_resize < qmp_marshal_block_resize, for a mutex (0x7700) "
        "of 1236 (IO io0), which waits in lseek64, a callback inside aio_poll() of `iothread:io0`",
        "the loop of `iothread:io0` does not run: 1236 (IO io0) waits in lseek64, a callback "
        "inside aio_poll() of `iothread:io0`",
    ]
    assert len(confirm(seen, later(seen))) == 2


def test_a_child_that_is_being_started_may_be_short_of_a_processor() -> None:
    starts = ("read+0x1", "g_spawn_async_with_pipes+0x29", "qmp_migrate+0x419", *LOOP[2:])
    seen = look(main_thread(starts, blocked_in="read"), halves=())
    assert confirm(seen, replace(seen, time_ns=seen.time_ns + MOVING_NS - 1)) == []
    assert len(confirm(seen, replace(seen, time_ns=seen.time_ns + MOVING_NS))) == 1


def test_a_contexts_own_lock_is_called_by_its_context() -> None:
    main = main_thread(IN_CONTEXT_LOCK, **lock(OTHER_TID))
    assert main.futex is not None
    main = replace(main, futex=replace(main.futex, address=OWN.address + 0x60))
    (finding, *_rest) = explain(look(main, io_thread(IN_LSEEK), halves=()))
    assert ", for the AioContext lock of `iothread:io0` of 1236 (IO io0)" in finding.sentence


def test_two_that_wait_for_each_others_locks_are_a_circle() -> None:
    main = main_thread(IN_CONTEXT_LOCK, **lock(VCPU_TID))
    cpu = replace(vcpu(TAKING_BQL[:4] + IN_PFLASH[3:], **lock(MAIN_TID)), polls=())
    (finding,) = explain(look(main, cpu, halves=()))
    assert ", for a mutex (0x7700) of 1235 (CPU 0/TCG), which waits in" in finding.sentence
    assert "for the BQL of 1234 (main): a circle" in finding.sentence
    assert finding.sentence.endswith(
        "; 1234 (main) waits for 1235 (CPU 0/TCG) waits for 1234 (main): a deadlock"
    )


DRAINING = ("syscall+0x19", "qemu_event_wait+0x4a", "drain_call_rcu+0xfa", "qmp_device_add+0x85",
            "do_qmp_dispatch_bh+0x39", *LOOP[2:])  # fmt: skip
SYNCHRONIZING = ("syscall+0x19", "qemu_event_wait+0x4a", "synchronize_rcu+0x16f",
                 "call_rcu_thread+0x85", "start_thread+0x305")  # fmt: skip


def rcu_thread(frames: tuple[str, ...] = SYNCHRONIZING) -> Thread:
    return Thread(OTHER_TID, "call_rcu", "other", "futex", frames=frames, whole=True)


def test_who_waits_for_rcu_waits_for_those_that_read() -> None:
    main = main_thread(DRAINING, blocked_in="futex")
    reads = vcpu(("cpu_exec+0x419",), blocked_in=PAGE_FAULT)
    (finding,) = explain(look(main, rcu_thread(), reads, halves=(), rcu_readers=(VCPU_TID,)))
    assert (
        "(main), in QMP device_add, waits in drain_call_rcu < qmp_device_add < do_qmp_dispatch_bh, "
        "for the RCU thread 1236 (call_rcu), which waits in synchronize_rcu < call_rcu_thread, "
        "for the RCU reader 1235 (CPU 0/TCG), which is in a page fault of cpu_exec"
    ) in finding.sentence
    (finding,) = explain(look(main, rcu_thread(), reads, halves=(), rcu_readers=None))
    assert finding.sentence.endswith(", which waits in synchronize_rcu < call_rcu_thread, for RCU "
                                     "readers")  # fmt: skip


ON_VCPU = ("pthread_cond_wait+0x1e8", "qemu_cond_wait_impl+0x4b", "do_run_on_cpu+0x90",
           "qemu-system-x86_64@0x78ca0d", "handle_hmp_command+0x1", "qmp_human_monitor_command+0x1",
           "qmp_marshal_human_monitor_command+0x1", *LOOP[2:])  # fmt: skip
SLEEPS = {"frames": ("ioctl+0x3b", "kvm_cpu_exec+0x85"), "blocked_in": PAGE_FAULT}


def test_who_asks_a_vcpu_thread_for_work_waits_for_the_one_that_does_not_run() -> None:
    main = main_thread(ON_VCPU, blocked_in="futex")
    other = replace(vcpu(frames=(), blocked_in=""), tid=OTHER_TID)
    (finding,) = explain(look(main, vcpu(**SLEEPS), other, halves=()))
    assert "(main), in QMP human-monitor-command, waits in do_run_on_cpu < " in finding.sentence
    assert ", for vCPU thread 1235 (CPU 0/TCG), which is in a page fault of" in finding.sentence
    # Which of two that do not run it asked does not show.
    asleep = replace(vcpu(**SLEEPS), tid=OTHER_TID)
    (finding,) = explain(look(main, vcpu(**SLEEPS), asleep, halves=()))
    assert finding.sentence.endswith(", for a vCPU thread")


@pytest.mark.parametrize("function", ["start_exclusive", "accel_ioctl_inhibit_begin"])
def test_who_waits_for_all_vcpus_is_told_with_those_that_do_not_run(function: str) -> None:
    main = main_thread(("syscall+0x19", f"{function}+0x1", *LOOP[2:]), blocked_in="futex")
    (finding,) = explain(look(main, vcpu(**SLEEPS), halves=()))
    assert f"waits in {function}, for vCPU thread 1235 (CPU 0/TCG), which is in a page" in (
        finding.sentence
    )


def test_who_waits_for_rcu_while_it_reads_never_goes_on() -> None:
    main = main_thread(DRAINING, blocked_in="futex")
    others = (rcu_thread(), vcpu(("cpu_exec+0x419",), blocked_in="futex"))
    (finding,) = explain(look(main, *others, halves=(), rcu_readers=(VCPU_TID, MAIN_TID)))
    assert finding.sentence.endswith(
        "; 1234 (main) waits for 1236 (call_rcu) waits for 1234 (main): a deadlock"
    )


def test_the_bql_is_known_by_its_address_where_its_function_is_not_on_the_stack() -> None:
    frames = (*TAKING, "main_loop_wait+0x176", *START)
    main = main_thread(frames, **lock(VCPU_TID, address=0xB0))
    (sentence,) = sentences(look(main, vcpu(), bql_holder=VCPU_TID, bql=0xB0))
    assert "for the BQL of 1235 (CPU 0/TCG)" in sentence


JOINING = ("__futex_abstimed_wait_common+0xc6", "__pthread_clockjoin_ex+0x1",
           "qemu_thread_join+0x9", "qcrypto_pbkdf2_count_iters+0x5",
           "qcrypto_block_create+0x1", *LOOP[2:])  # fmt: skip


# As glibc 2.41 has it.
NAMELESS_JOINING = ("libc.so.6@0x9a72e", "libc.so.6@0x944b4", *JOINING[2:])


@pytest.mark.parametrize("frames", [JOINING, NAMELESS_JOINING])
def test_who_waits_for_the_end_of_a_thread_that_is_at_work_computes_and_is_not_stuck(
    frames: tuple[str, ...],
) -> None:
    main = main_thread(frames, **lock(0, word=OTHER_TID))
    worker = Thread(OTHER_TID, "qemu", "other", "")
    seen = look(main, worker, halves=(half("thread_pool_completion_bh", MAIN),))
    (finding,) = confirm(seen, later(seen, 2_000_000_000))
    assert finding.kind == "computes"
    assert ", for the end of 1236 (qemu), which runs" in finding.sentence
    asleep = replace(worker, blocked_in="futex", frames=("pthread_cond_wait+0x1",), cpu_ns=1)
    (finding,) = explain(look(main, asleep, halves=()))
    assert finding.kind == "stuck"


def test_pause_all_vcpus_waits_for_whichever_vcpu_is_not_where_it_stops() -> None:
    faulting = replace(
        vcpu(("code_gen_buffer+0x5", "cpu_exec+0x419")),
        blocked_in=PAGE_FAULT, wchan="handle_userfault", polls=(),
    )  # fmt: skip
    idle = replace(
        vcpu(("pthread_cond_wait+0x1e8", "qemu_cond_wait_impl+0x4b", "qemu_wait_io_event+0x3e")),
        tid=OTHER_TID, name="CPU 1/TCG", blocked_in="futex",
    )  # fmt: skip
    (finding,) = explain(look(main_thread(PAUSING), faulting, idle, halves=()))
    assert finding.sentence.endswith(
        ", for vCPU thread 1235 (CPU 0/TCG), which is in a page fault that userfaultfd has to "
        "serve (postcopy) of code_gen_buffer < cpu_exec"
    )
    # It moves all the time, and does not stop: only looks that are farther apart tell that.
    before = look(main_thread(PAUSING), RUNNING_VCPU, idle, halves=())
    assert explain(before)[0].sentence.endswith(", for vCPU thread 1235 (CPU 0/TCG), which runs")
    assert confirm(before, later(before, 600_000_000)) == []
    assert [one.kind for one in confirm(before, later(before, 2_000_000_000))] == ["stuck"]
    (finding,) = explain(look(main_thread(PAUSING), RUNNING_VCPU, replace(faulting, tid=1299)))
    assert ", for vCPU thread 1299 (CPU 0/TCG), which is in a page fault" in finding.sentence


def test_a_callback_that_sleeps_inside_a_poll_polls_nothing_on_main_and_iothreads_alike() -> None:
    """Another thread's poll of the same context would run what is pending there."""
    own = (Poll(OWN.address, 3),)
    asleep = replace(io_thread(IN_LSEEK), blocked_in="lseek", polls=own, cpu_ns=4)
    (finding,) = explain(look(asleep, halves=(half("x", OWN),), main_loop=False))
    assert (finding.kind, finding.bottom_halves) == ("stuck", (half("x", OWN),))
    polls = ("epoll_wait+0x1", "qemu-system-x86_64@0x5", *IN_LSEEK[3:])
    sound = replace(io_thread(polls), blocked_in="epoll_wait", polls=(Poll(OWN.address, 2),))
    assert explain(look(sound, halves=(half("x", OWN),), main_loop=False)) == []


def running(*inner: str) -> Thread:
    return main_thread((*inner, "aio_bh_poll+0xc6", *LOOP[2:]), blocked_in="")


def test_who_computes_in_one_callback_at_every_sighting_is_told_as_that() -> None:
    seen = look(main_thread((), blocked_in=""), halves=())
    main = seen.threads[0]
    same = [running(f"inner+{n}", "qcrypto_pbkdf2+0x1", "qmp_marshal_x_exit+0x2") for n in range(6)]
    found = computing(seen, main, same, 1_500_000_000)
    assert found is not None
    assert found.sentence == (
        "the main loop does not run: 1234 (main) computes for QMP x-exit in qcrypto_pbkdf2 < "
        "qmp_marshal_x_exit, for at least 1.5 s"
    )
    different = [running(f"bh_{n}+0x1") for n in range(6)]
    assert computing(seen, main, different, 1_500_000_000) is None
    assert goes_round(different)
    taking = [main_thread(TAKING_BQL, blocked_in="futex", turns=n) for n in range(6)]
    assert computing(seen, main, taking, 1_500_000_000) is None
    assert not goes_round(taking)
    assert goes_round([*taking, running("bh+0x1")])
    assert not goes_round(same)
    assert not goes_round([])


def test_a_worker_that_gets_no_processor_is_no_hang() -> None:
    """Seen on a crowded host: nothing moved between two looks, as a worker waited for its turn."""
    threads = (main_thread(TAKING_BQL, blocked_in="futex"), vcpu())
    worker = Thread(OTHER_TID, "worker", "worker", "")
    asleep = replace(worker, blocked_in="futex", frames=("pthread_cond_timedwait+0x1",))
    for last, confirmed in ((worker, False), (asleep, True)):
        before = look(*threads, last, bql_holder=VCPU_TID)
        now = replace(before, time_ns=before.time_ns + 500_000_000)
        assert bool(confirm(before, now)) == confirmed


def test_a_crash_is_told_by_its_core_and_an_abort_from_outside_is_none() -> None:
    dying = ("__pthread_kill_implementation+0x10c", "gsignal+0x12", "abort+0xd3")
    saving = ("__assert_fail+0x42", "save_snapshot+0x1", "aio_bh_poll+0xc6")
    frames = (*dying, *saving, *IN_PFLASH[1:])
    dead = replace(vcpu(), frames=frames, polls=(Poll(MAIN.address, 6),), blocked_in="")
    ending = Ending("SIGABRT", VCPU_TID, message="Assertion `x' failed.")
    waiting = main_thread(PAUSING, blocked_in="futex")
    (finding,) = explain(look(waiting, dead, ending=ending))
    assert finding.sentence == (
        "SIGABRT ended it in 1235 (CPU 0/TCG): save_snapshot, a bottom half that it ran inside "
        "aio_poll() of `main`, called by blk_pwrite < memory_region_dispatch_write, without the "
        "BQL; Assertion `x' failed.; snapshot_save_job_bh in `iohandler` was pending"
    )
    assert finding.proof
    saving = ("__assert_fail+0x42", "qemu@0x1", "save_snapshot+0x1", "snapshot_save_job_bh+0x3")
    frames = (*dying, *saving, "aio_bh_poll+0xc6", *IN_PFLASH[1:])
    named = replace(dead, frames=frames, polls=(Poll(MAIN.address, 8),))
    (finding,) = explain(look(waiting, named, ending=ending))
    assert (
        "CPU 0/TCG): save_snapshot, in snapshot_save_job_bh, a bottom half that it ran inside "
        in (finding.sentence)
    )
    unnamed = replace(named, frames=(*frames[:6], "qemu@0x2", *frames[7:]))
    (finding,) = explain(look(waiting, unnamed, ending=ending))
    assert "): save_snapshot, a bottom half that it ran inside " in finding.sentence
    sent = replace(ending, sender=77, message="")
    assert [f.kind for f in explain(look(waiting, dead, ending=sent))] != ["crashed"]


BROKEN = main_thread(IN_JOB[:2], whole=False)
NO_POLL = replace(vcpu(), polls=(Poll(0, 1),))
ON_MAIN = (half("x", MAIN),)


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        (look(BROKEN, halves=()), "the stack of 1234 (main) breaks off"),
        (look(main_thread(IN_JOB, Poll(0, 2)), main_loop=False),
         "which AioContext 1234 (main) polls cannot be told"),
        (look(main_thread(TAKING_BQL), bql_holder=None),
         "1234 (main) waits for the BQL, and who holds it cannot be read"),
        (look(main_thread(TAKING_BQL), bql_holder=999),
         "1234 (main) waits for the BQL, and who holds it cannot be read"),
        (look(main_thread(PAUSING), NO_POLL),
         "which AioContext 1235 (CPU 0/TCG) polls cannot be told"),
        (look(main_thread(PAUSING), replace(vcpu(IN_PFLASH[:1]), whole=False), halves=ON_MAIN,
              bql_holder=VCPU_TID), "the stack of 1235 (CPU 0/TCG) breaks off"),
        (look(main_thread(PAUSING), RUNNING_VCPU, halves=ON_MAIN, bql_holder=None),
         "who holds the BQL cannot be read"),
        (look(main_thread(LOOP), unread=(MAIN.address,)),
         "the bottom halves of `main` cannot be read"),
        (look(main_thread(LOOP), dark=(7, 8)),
         "the AioContext of threads 7, 8, if there is one, cannot be read"),
        (replace(look(main_thread(LOOP), dark=(MAIN_TID,)), contexts=()),
         "the AioContexts cannot be read"),
        (look(main_thread(LOOP), Thread(77, "IO io1", "iothread", "")),
         "the AioContext of 77 (IO io1) was not found"),
        (look(main_thread(LOOP), missing=("bh_next", "job_co")),
         "the code of this QEMU does not show bh_next"),
        (look(halves=(SAVE,)), "thread 1234, which runs `iohandler`, is not there"),
        (look(vcpu(), halves=()), "the main thread is not there"),
    ],
    ids=["broken stack", "unknown poll", "unknown holder", "holder of no thread", "another's poll",
         "holder's stack", "unknown holder may poll", "unread list", "dark threads", "no contexts",
         "iothread", "missing fact", "no home thread", "no main thread"],
)  # fmt: skip
def test_what_cannot_be_read_is_named_not_taken_for_clear(seen: Look, reason: str) -> None:
    assert reason in unclear(seen)
    assert [f for f in explain(seen) if f.kind == "stranded"] == []
    assert reason in still_unclear(seen, later(seen))
    assert still_unclear(look(main_thread(LOOP)), later(seen)) == []


@pytest.mark.parametrize(
    "seen",
    [
        STRANDED, look(main_thread(LOOP)), look(main_thread((), blocked_in="")),
        look(main_thread(LOOP), replace(vcpu(IN_PFLASH[:1]), whole=False)),
        look(main_thread(LOOP), missing=("job_co", "handler_next", "bql")),
    ],
    ids=["stranded", "idle", "running", "another's stack", "others"],
)  # fmt: skip
def test_what_decides_nothing_leaves_nothing_open(seen: Look) -> None:
    assert unclear(seen) == []


def test_only_what_matters_to_the_named_one_is_left_open() -> None:
    seen = look(BROKEN)
    assert unclear(seen, SAVE.name) == ["the stack of 1234 (main) breaks off"]
    assert unclear(seen, "another_bh") == []
