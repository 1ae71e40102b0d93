"""Scripts that our own gdb runs inside: only the standard library, ``qtrace.machine`` and gdb."""
