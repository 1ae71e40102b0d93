"""The QEMU process, its binary and its cores, read-only: nothing in here changes the target.

Only ``stopped`` stops it, for a moment and when asked to.
"""
