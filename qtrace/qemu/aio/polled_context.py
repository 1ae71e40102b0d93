"""Which AioContext a sleeping aio_poll() polls, where no register tells.

Of a thread that was not stopped only what its callees have saved is known, and a compiler need not
let them save ctx: Ubuntu's 8.2.2 keeps it in r15, which fdmon_poll_wait() does not touch.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from qtrace.machine.memory import Memory
from qtrace.qemu.aio.consistent_lists import Torn
from qtrace.qemu.aio.walk import AioReader, Missing

# struct pollfd: fd, events, revents.
POLLFD = struct.Struct("<ihh")
MOST = 4096


def polled_by_fds(
    memory: Memory, reader: AioReader, contexts: Iterable[int], arguments: tuple[int, ...]
) -> int:
    """The context whose fd handlers a thread polls in ppoll(2); 0 where that is not told.

    fdmon_poll_wait() hands over the descriptors of ctx->aio_handlers, and of nothing else; one
    of them is the context's own event notifier, which no other context has.

    Args:
        arguments: those of ppoll(2).
    """
    if len(arguments) < 2 or not 0 < arguments[1] <= MOST:
        return 0
    size = arguments[1] * POLLFD.size
    raw = memory.read(arguments[0], size)
    if len(raw) < size:
        return 0
    polled = {fd for fd, _events, _revents in POLLFD.iter_unpack(raw)}
    found = []
    for ctx in contexts:
        try:
            own = {handler.fd for handler in reader.handlers(ctx)}
        except (Torn, Missing):
            return 0
        if polled <= own:
            found.append(ctx)
    return found[0] if len(found) == 1 else 0
