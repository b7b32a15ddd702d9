r"""A deep residual MLP under four rules, beside itself with a frozen body.

Source: the diagnostic protocol of arXiv 2606.21126; see configs/residual_mlp.py. Its
    direct feedback enters at the outputs of the blocks (`taps="blocks"`).
Command: python trainers/sweep.py --grid=configs/grids/audit.py --workdir=runs/audit
Expected: a minute a cell on one core; results/audit.csv.
"""


def get_grid():
    blocks = {"name": "dfa", "taps": "blocks"}
    cells = [
        ("fa", None),
        (blocks, None),
        ("dfa", None),
        ("backprop", None),
        ("fa", "body"),
        # The last layer's gradient is the same under every rule.
        ("backprop", "all_but_last"),
        (blocks, "body"),
        ("dfa", "body"),
        ("backprop", "body"),
    ]
    rules, frozen = (list(column) for column in zip(*cells, strict=True))
    return {
        "config": "residual_mlp.py",
        "axes": [{"seed": [0, 1]}, {"rule": rules, "model.frozen": frozen}],
        "seconds_per_cell": 60,
    }
