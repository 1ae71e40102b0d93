"""What the memory of a QEMU means, read over a ``Memory``: ``aio``, its event loops, and ``block``.

The standard library and ``qtrace.machine`` only: gdb's Python runs it too. Nothing here writes to a
target or stops it.
"""
