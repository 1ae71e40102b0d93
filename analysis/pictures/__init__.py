"""Pictures of recordings, made for reading: lanes, latencies, replies, shares, what is stranded.

Need matplotlib (the ``notebook`` extra); nothing else in the package does. Each function returns
a figure that is not shown and belongs to no backend.
"""
