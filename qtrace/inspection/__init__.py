"""One QEMU with all that is learned of it, looks taken at it, and what they prove.

Only ``held_look`` stops it, for a moment and when asked to.
"""
