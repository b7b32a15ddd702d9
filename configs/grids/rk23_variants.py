r"""The conserved ratio under changes of precision, rate, batch, depth and activation.

Source: Robertson and Koyejo (2023), figure 1, changed in one thing at a time.
Command: python trainers/sweep.py --grid=configs/grids/rk23_variants.py \
             --workdir=runs/rk23_variants --jobs=2
Expected: 9 cells, 5 minutes on 2 cores. The law holds to the squared steps for linear,
    ReLU and leaky ReLU, and is lost under tanh and sigmoid.
"""

_ROWS = [
    # activation, hidden units, dtype, learning rate, batch
    ("linear", (50,), "float64", 2e-5, None),
    ("linear", (50,), "float32", 2e-5, None),
    ("linear", (50,), "float64", 2e-4, None),
    ("linear", (50,), "float64", 2e-5, 10),
    ("linear", (50, 50), "float64", 2e-6, None),
    ("relu", (50,), "float64", 2e-5, None),
    ("leaky_relu", (50,), "float64", 2e-5, None),
    ("tanh", (50,), "float64", 2e-5, None),
    ("sigmoid", (50,), "float64", 2e-5, None),
]


def get_grid():
    activations, units, dtypes, rates, batches = map(list, zip(*_ROWS, strict=True))
    fixed = {
        "epochs": [2000],
        "instruments.ledger": [False],
        "instruments.minimum_norm": [False],
        "instruments.layer_terms": [True],
    }
    return {
        "config": "rk23.py",
        "axes": [
            {"seed": [0], **fixed},
            {
                "model.activation": activations,
                "model.hidden_units": units,
                "dtype": dtypes,
                "optimizer.learning_rate": rates,
                "batch_size": batches,
            },
        ],
        "seconds_per_cell": 40,
    }
