"""qtrace: which thread ran this bottom half of a live QEMU, and inside whose aio_poll()."""

__version__ = "0.1.0"
