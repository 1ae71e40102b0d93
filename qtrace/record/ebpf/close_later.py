"""A program of its own: closes perf events once whoever had set them has closed them.

Its arguments are descriptors: what to read until there is nothing more, and the events. The kernel
waits for each to be out of use (perf_trace_event_unreg() in kernel/trace/trace_event_perf.c): for
seconds in all, and for many times as long were they closed one after the other.
"""

import os
import sys
import threading


def main() -> None:
    until, *events = map(int, sys.argv[1:])
    # Nobody waits for it: what started it may be gone before.
    if os.fork():
        os._exit(0)
    os.read(until, 1)
    threads = [threading.Thread(target=os.close, args=(fd,)) for fd in events]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
