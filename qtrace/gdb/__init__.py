"""gdb on a live QEMU, without harm: attach, stop at a few rare places, leave everything as it was.

The gdb recorder and the experiments stand on it. It is the only part that stops a target or
writes to it, and all that it changes is put back, by ``safety`` where nobody else is left.
"""
