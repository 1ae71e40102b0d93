"""Inside gdb: a message for each hit of a watched site, with what an eBPF probe would copy."""

from __future__ import annotations

from typing import Any

from qtrace.gdbscripts.stops import Channel, Plan, Stop, now_ns, registers

PAGE = 4096


class Site(Stop):
    """A call site or callback: registers and stack go to qtrace, the thread goes on."""

    def __init__(self, address: int, recorder: Recorder) -> None:
        super().__init__(address)
        self._recorder = recorder

    def reached(self, tid: int) -> bool:
        self._recorder.take(self.address, tid)
        return False


class Recorder(Plan):
    """Sends every hit; counts by site those that found no room.

    Config: ``stops`` (addresses), ``registers`` (names, in the order wanted), ``candidates``
    (those that may point to the QEMUBH), ``candidate_bytes``, ``stack_pages``.
    """

    def __init__(self, channel: Channel, config: dict[str, Any]) -> None:
        super().__init__(channel, config)
        self._lost: dict[int, int] = {}

    def arm(self) -> None:
        self.stops += [Site(address, self) for address in self.config["stops"]]

    def take(self, address: int, tid: int) -> None:
        time_ns, values = now_ns(), registers(self.config["registers"])
        size = self.config["candidate_bytes"]
        read = self.target.memory.read
        candidates = b"".join(
            read(values[name], size).ljust(size, b"\0") for name in self.config["candidates"]
        )
        hit = {
            "kind": "hit",
            "time_ns": time_ns,
            "tid": tid,
            "thread": self.target.thread_name(tid),
            "registers": list(values.values()),
            "lost": self._lost,
            "candidates": len(candidates),
        }
        # gdb has set rip back to the breakpoint; a probe sees the same.
        if not self.channel.send(hit, candidates + self._stack(values["rsp"])):
            self._lost[address] = self._lost.get(address, 0) + 1

    def _stack(self, base: int) -> bytes:
        """From the stack pointer to the end of its page, then page by page until there is none."""
        data = b""
        for _ in range(self.config["stack_pages"]):
            address = base + len(data)
            size = PAGE - address % PAGE
            part = self.target.memory.read(address, size)
            data += part
            if len(part) < size:
                break
        return data


KINDS: dict[str, type[Plan]] = {"record": Recorder}
