"""Commands inside gdb. Only the standard library and gdb: gdb's own Python runs this.

``source aio.py`` in gdb; the other modules are its parts.
"""
