"""Campaigns of injected faults, in their long form: `python -m tests.faults --help`."""
