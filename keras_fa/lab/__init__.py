"""The laboratory: runs, sweeps and searches, from a configuration to a run folder."""
