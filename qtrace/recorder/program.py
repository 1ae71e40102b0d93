"""The BPF program, compiled by bcc: half a second of clang that need not be waited for."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from qtrace.errors import RecorderUnavailable
from qtrace.recorder.bcc_module import load_bcc
from qtrace.recorder.kernel_headers import prepare_headers

PROBES = Path(__file__).resolve().parent.parent / "probes"
# 32 MiB: some 850 hits may wait while Python unwinds one.
RING_PAGES = 8192


class WatchProgram:
    """probes/watch.bpf.c, loaded into the kernel.

    Raises RecorderUnavailable when bcc, its headers or the kernel refuse.
    """

    def __init__(self, ring_pages: int = RING_PAGES) -> None:
        prepare_headers()
        bcc = load_bcc()
        self.library: Any = bcc.lib
        try:
            self.bpf: Any = bcc.BPF(
                src_file=str(PROBES / "watch.bpf.c").encode(),
                cflags=[f"-I{PROBES}", f"-DRING_PAGES={ring_pages}"],
            )
            self.fd: int = self.bpf.load_func(b"on_hit", bcc.BPF.KPROBE).fd
        except Exception as error:
            # bcc raises bare Exceptions; what clang or the kernel said went to stderr.
            raise RecorderUnavailable(
                f"the BPF program cannot be loaded: {str(error).strip() or repr(error)}",
                "qtrace doctor says what is missing",
            ) from error


def compile_ahead(ring_pages: int = RING_PAGES) -> Future[WatchProgram]:
    """Start compiling in the background: clang runs while Python imports and scans."""
    pool = ThreadPoolExecutor(1, "qtrace-bpf-compile")
    future = pool.submit(WatchProgram, ring_pages)
    pool.shutdown(wait=False)
    return future
