"""Whether a link for uprobes means a whole process is tried where the version does not say."""

from __future__ import annotations

import os
import platform
import subprocess

import pytest

from qtrace.host.uprobe_links import hits_of_other_threads, links_work

pytestmark = pytest.mark.bpf


def test_a_link_is_tried_by_a_hit_of_another_thread() -> None:
    if not links_work():
        pytest.skip("this kernel has no links for uprobes that mean whole processes")
    assert hits_of_other_threads(os.getpid())
    with subprocess.Popen(["sleep", "600"]) as other:
        # As a kernel does that takes the pid for another thread's.
        try:
            assert not hits_of_other_threads(other.pid)
        finally:
            other.kill()


def test_links_of_a_kernel_of_an_older_version_are_taken_when_they_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Distributions' kernels have parts of later ones: 5.14 of RHEL 9, 6.6 and 6.8."""
    try_anew = links_work.__wrapped__
    here = try_anew()
    monkeypatch.setattr(platform, "release", lambda: "6.8.0-31-generic")
    assert try_anew() == here
