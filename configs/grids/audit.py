r"""A deep residual MLP under four rules, beside itself with a frozen body.

Source: the diagnostic protocol of arXiv 2606.21126; see configs/residual_mlp.py.
Command: python trainers/sweep.py --grid=configs/grids/audit.py --workdir=runs/audit
Expected: a minute a cell on one core; results/audit.csv.
"""


def get_grid():
    return {
        "config": "residual_mlp.py",
        "axes": [
            {"seed": [0, 1]},
            {"rule": ["backprop", "fa", "dfa"]},
            {"model.frozen": [None, "body", "all_but_last"]},
        ],
        "seconds_per_cell": 60,
    }
