"""What a thread is: one order of the evidence, for recordings, looks and gdb alike."""

from __future__ import annotations

import pytest

from qtrace.roles import Role, Roles

PID, TID = 100, 107
MAKER = "CPU 0/KVM"
WORKER = ("clone", "start_thread", "worker_thread+0x1f", "pthread_cond_timedwait+0x22")
VCPU = ("kvm_vcpu_thread_fn+0x9", "kvm_cpu_exec+0x3")


def test_a_fresh_worker_that_still_has_its_makers_name_is_no_vcpu_thread() -> None:
    roles = Roles(PID)
    roles.present({PID: "qemu-system-x86", TID: MAKER})
    assert roles.role(TID, MAKER) == "vcpu"
    assert roles.role(TID, MAKER, WORKER) == "worker"
    # What was proven stays so, whatever it is called and wherever it is met.
    assert roles.role(TID, MAKER) == "worker"
    assert roles.role(TID, "worker", VCPU) == "worker"


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ({}, "vcpu"),
        ({"whole": True}, "other"),
        ({"owns_context": True}, "iothread"),
        ({"owns_context": True, "frames": WORKER}, "worker"),
        ({"frames": ("qemu_thread_start+0x8", "g_malloc")}, "vcpu"),
    ],
    ids=["its name", "its whole stack", "a context", "its stack before that", "no proof"],
)
def test_a_proof_comes_before_a_name(known: dict[str, object], expected: Role) -> None:
    assert Roles(PID).role(TID, MAKER, **known) == expected  # type: ignore[arg-type]


def test_the_main_thread_is_the_one_with_the_process_id_whatever_it_runs() -> None:
    roles = Roles(PID)
    roles.tell({TID: ("vcpu", "CPU 0")})
    assert roles.role(PID, MAKER, VCPU) == "main"
    assert roles.prove(PID, "vcpu") == "main"
    assert roles.role(TID, "x", WORKER) == "vcpu"


def test_a_name_that_is_the_main_threads_tells_nothing() -> None:
    roles = Roles(PID)
    roles.present({PID: "IO io0", TID: "IO io0"})
    assert roles.is_open(TID, "IO io0")
    assert roles.role(TID, "IO io0") == "other"
    assert roles.role(TID, "IO io1") == "iothread"
    assert roles.role(TID, "IO io1", owns_context=False) == "other"


def test_an_ended_threads_role_is_kept_until_another_thread_has_its_id() -> None:
    roles = Roles(PID)
    roles.tell({TID: ("iothread", "io0")})
    roles.present({PID: "qemu", TID: "qemu"})
    roles.present({PID: "qemu"})
    assert (roles.role(TID, "qemu"), roles.iothread_id(TID, "qemu")) == ("iothread", "io0")
    roles.present({PID: "qemu", TID: "worker"})
    assert (roles.role(TID, "worker"), roles.iothread_id(TID, "qemu")) == ("worker", str(TID))


def test_a_name_that_is_guessed_proves_nothing() -> None:
    assert Roles(PID).role(TID, "qemu", ("worker_thread?+0x5", "cpu_exec?")) == "other"
