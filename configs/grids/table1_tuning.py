r"""LeNet on one 10-class subset: a check of table 1's learning rate and weight decay.

Source: Robertson and Koyejo (2024), appendix A: tuned on one random 10-class subset.
Command: python trainers/sweep.py --grid=configs/grids/table1_tuning.py \
             --workdir=runs/table1_tuning
    Without the last partial batch of an epoch, on which the paper is silent:
    --axis="optimizer.learning_rate=[0.01]" --axis="optimizer.weight_decay=[1e-4]" \
    --axis="drop_last=[True]".
    sign-FA: --axis="rule=['sign_fa']" --axis="optimizer.weight_decay=[1e-4]", and other
    scales of its B: --axis="optimizer.learning_rate=[0.01]" \
    --axis="rule=[{'name':'sign_fa','scale':0.1}]".
Expected: 12 cells of 40 epochs, 3 minutes a cell on 2 cores.
"""


def get_grid():
    return {
        "config": "cifar100_lenet.py",
        "axes": [
            {"epochs": [40]},
            {"rule": ["backprop", "fa"]},
            {"optimizer.learning_rate": [0.003, 0.01, 0.03]},
            {"optimizer.weight_decay": [0.0, 1e-4]},
        ],
        "seconds_per_cell": 170,
    }
