"""Command-line programs: each is flags and one call into `keras_fa`."""
