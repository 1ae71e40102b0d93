"""`--all`: every bottom half, in blocks of records that are worked on after the recording."""
