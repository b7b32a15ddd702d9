r"""Noisy MNIST over widths, methods and seeds: table 3 and figures 2 to 4.

Source: Robertson and Koyejo (2024), section 6 and appendix A.
Command: python trainers/sweep.py --grid=configs/grids/table3.py --workdir=runs/table3 \
             --jobs=2
    Fewer: --axis="seed=[0]" --axis="model.hidden_units=[(60,)]".
Expected: 240 cells, seven hours on 2 cores.
"""


def get_grid():
    return {
        "config": "noisy_mnist.py",
        "axes": [
            {"seed": [0, 1, 2, 3, 4, 5]},
            {
                "model.hidden_units": [
                    (15,),
                    (30,),
                    (45,),
                    (60,),
                    (75,),
                    (100,),
                    (125,),
                    (150,),
                    (175,),
                    (200,),
                ]
            },
            {"rule": ["fa", "ada_fa", "sign_fa", "backprop"]},
        ],
        "seconds_per_cell": 160,
    }
