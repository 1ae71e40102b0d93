"""Events on disk: the one thing that recorders write and the analysis reads."""
