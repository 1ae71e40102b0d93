"""Every QEMU of a host, watched by looks alone, and what that shows as metrics.

The process that looks holds the capabilities; the one that listens on a port has none of them.
"""
