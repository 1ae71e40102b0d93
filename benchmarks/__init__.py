"""What qtrace costs, beside what one would use instead: ``make bench``.

Every figure is a ratio within one interleaved run; the machine's own noise stands beside
it as an A/A column, the same measurement with nothing attached both times.
"""
