r"""The conserved ratio under changes of precision, rate, batch, depth and activation.

Source: Robertson and Koyejo (2023), figure 1, changed in one thing at a time.
Command: python trainers/sweep.py --grid=configs/grids/rk23_variants.py \
             --workdir=runs/rk23_variants --jobs=2
Expected: 9 cells, 7 minutes on 2 cores. The law holds to the squared steps for linear,
    ReLU and leaky ReLU, and is lost under tanh and sigmoid.
"""

_ROWS = [
    # activation, hidden units, dtype, learning rate, batch, epochs
    ("linear", (50,), "float64", 2e-5, None, 2000),
    ("linear", (50,), "float32", 2e-5, None, 2000),
    ("linear", (50,), "float64", 2e-4, None, 2000),
    ("linear", (50,), "float64", 2e-5, 10, 2000),
    # Three layers: the potential is 255 - 248 at the start, and the ratio leaves 1
    # ten times as far at ten times this rate.
    ("linear", (50, 50), "float64", 2e-7, None, 20_000),
    ("relu", (50,), "float64", 2e-5, None, 2000),
    ("leaky_relu", (50,), "float64", 2e-5, None, 2000),
    ("tanh", (50,), "float64", 2e-5, None, 2000),
    ("sigmoid", (50,), "float64", 2e-5, None, 2000),
]


def get_grid():
    activations, units, dtypes, rates, batches, epochs = map(
        list, zip(*_ROWS, strict=True)
    )
    fixed = {
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
                "epochs": epochs,
            },
        ],
        "seconds_per_cell": 40,
    }
