"""The processor, the memory of a process and what Linux tells of its threads.

The standard library only, in Python 3.9's syntax: gdb's Python and the watchdog run this too.
"""
