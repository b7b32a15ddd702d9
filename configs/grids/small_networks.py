r"""A small MobileNetV2 and a small ViT under five rules, and with one layer trained.

Source: see configs/small_networks.py.
Command: python trainers/sweep.py --grid=configs/grids/small_networks.py \
             --workdir=runs/small_networks
Expected: a minute a cell on one core; results/small_networks.csv.
"""


def get_grid():
    rules = ["backprop", "fa", "ada_fa", "sign_fa", "kolen_pollack"]
    return {
        "config": "small_networks.py",
        "axes": [
            {"seed": [0, 1, 2]},
            {"model.name": ["small_networks:mobilenet", "small_networks:vit"]},
            {
                "rule": [*rules, "backprop"],
                "model.frozen": [None] * len(rules) + ["all_but_last"],
            },
        ],
        "seconds_per_cell": 60,
    }
