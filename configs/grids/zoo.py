r"""The standing table: five small networks under six rules.

Source: none; 784-100-10 on MNIST, and LeNet, a ResNet, a MobileNetV2 and a ViT on ten
    classes of CIFAR-100. The last two under all rules but direct feedback are cells of
    configs/grids/small_networks.py, and are not run again.
Command: python trainers/sweep.py --grid=configs/grids/zoo.py \
             --workdir=runs/zoo --jobs=2
Expected: 57 cells of about half a minute on one core, more for the ResNet.

Every cell has Adam at a rate of 1e-3 and batches of 64: nothing was tuned. The ViT is
not under direct feedback, which reaches no layer inside of its attention.
"""

RULES = ["backprop", "fa", "sign_fa", "ada_fa", "kolen_pollack", "dfa"]


def get_grid():
    cells = [("mnist", "mlp", rule) for rule in RULES]
    cells += [("cifar100", "lenet", rule) for rule in RULES]
    cells += [("cifar100", "small_networks:resnet", rule) for rule in RULES]
    cells += [("cifar100", "small_networks:mobilenet", "dfa")]
    datasets, networks, rules = (list(column) for column in zip(*cells, strict=True))
    # MNIST is twelve times as large and wants fewer epochs.
    of_mnist = [name == "mnist" for name in datasets]
    return {
        "config": "small_networks.py",
        "axes": [
            {"seed": [0, 1, 2]},
            {
                "model.name": networks,
                "rule": rules,
                "dataset.name": datasets,
                "dataset.num_classes": [None if is_it else 10 for is_it in of_mnist],
                "dataset.class_seed": [None if is_it else 0 for is_it in of_mnist],
                "epochs": [5 if is_it else 10 for is_it in of_mnist],
            },
        ],
        "seconds_per_cell": 30,
    }
