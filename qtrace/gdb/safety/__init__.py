"""What puts a target back whatever happens to qtrace and gdb: the watchdog, and its guard.

``watchdog`` and what it runs use the standard library only: a small process that starts at once.
"""
