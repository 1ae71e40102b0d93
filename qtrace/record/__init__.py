"""From a target to rows of events: ``ebpf``, its programs in the kernel; ``all_events``, `--all`.

Every recorder writes the same rows.
"""
