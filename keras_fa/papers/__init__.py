"""The papers' tables and figures from finished run folders. Nothing here trains.

`experiments` lists what there is, `papers` has the papers' numbers, `report` makes one
HTML file of it all; every other module makes the tables and figures of one setting.
"""

from keras_fa._extras import extra

with extra("papers"):
    from keras_fa.papers.experiments import EXPERIMENTS, Experiment, measures
    from keras_fa.papers.sections import Run, Section, read_runs

__all__ = ["EXPERIMENTS", "Experiment", "Run", "Section", "measures", "read_runs"]
