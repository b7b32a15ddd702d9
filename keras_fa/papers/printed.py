"""The papers' numbers, as printed, and what their figures are said to show.

Sources:
    RK24: Robertson and Koyejo (2024), tables 1 to 3.
    RK23: Robertson and Koyejo (2023), section 6.
    S21: Song, Xu and Lafferty (2021), section 5.
    Akrout et al. (2019): the logs beside the authors' published code.

Each number is (mean, standard error). Accuracies in percent.
"""

_RULES = ("fa", "ada_fa", "sign_fa", "backprop")


def _by_rule(rows):
    return {
        (key, rule): cell
        for key, cells in rows.items()
        for rule, cell in zip(_RULES, cells, strict=True)
    }


# RK24, table 1: test accuracy of LeNet on n classes of CIFAR-100. Six repetitions.
TABLE1 = _by_rule(
    {
        10: ((55.2, 3.8), (61.6, 0.4), (74.1, 0.1), (75.8, 0.2)),
        25: ((39.7, 0.5), (42.9, 1.2), (58.9, 1.2), (60.1, 1.2)),
        50: ((32.6, 0.6), (34.1, 0.5), (48.9, 0.3), (50.6, 0.4)),
    }
)

# RK24, table 2: test accuracy of ResNet-18 on n classes of Tiny-ImageNet. Four
# repetitions.
TABLE2 = _by_rule(
    {
        10: ((49.6, 1.7), (51.6, 2.2), (64.9, 4.8), (67.5, 0.7)),
        25: ((40.1, 1.6), (35.3, 1.0), (53.0, 2.6), (55.9, 0.6)),
        50: ((30.9, 0.8), (31.0, 0.9), (47.7, 0.6), (53.4, 2.3)),
    }
)

# RK24, table 3: mean absolute deviation of the conserved ratio from 1, by width. Six
# repetitions.
TABLE3 = _by_rule(
    {
        15: ((1.5, 0.6), (1.0, 0.2), (0.4, 0.1), (22.3, 3.2)),
        30: ((0.5, 0.2), (0.1, 0.02), (0.07, 0.02), (4.8, 0.3)),
        45: ((0.2, 0.1), (0.03, 0.01), (0.02, 0.005), (2.6, 0.1)),
        60: ((0.2, 0.1), (0.01, 0.002), (0.02, 0.003), (1.4, 0.03)),
        75: ((0.2, 0.2), (0.01, 0.002), (0.009, 0.003), (1.0, 0.09)),
        100: ((0.07, 0.05), (0.006, 0.002), (0.01, 0.002), (0.6, 0.04)),
        125: ((0.01, 0.002), (0.006, 0.001), (0.005, 0.001), (0.4, 0.04)),
        150: ((0.008, 0.002), (0.004, 0.001), (0.004, 0.0004), (0.4, 0.01)),
        175: ((0.007, 0.002), (0.005, 0.0004), (0.003, 0.0006), (0.3, 0.008)),
        200: ((0.01, 0.002), (0.004, 0.0004), (0.003, 0.0002), (0.2, 0.004)),
    }
)

# Akrout et al., MNIST after 400 epochs, one run: test accuracy and the angle of W and B
# in the output layer, degrees.
AKROUT = {
    "backprop": (98.50, None),
    "fa": (97.80, 40.0),
    "kolen_pollack": (98.45, 3.6),
    "weight_mirror": (98.49, 3.8),
}

# Errors on MNIST's test images, percent. Lillicrap et al. (2016): between 2 and 3.
# Nokland (2016): with dropout. biotorch (2021): its benchmark table, LeNet.
LILLICRAP = {"fa": 3.0}
NOKLAND = {"dfa": 1.45}
BIOTORCH = {
    "backprop": 0.91,
    "fa": 1.70,
    "sign_fa": 0.94,
    "frsf": 0.97,
    "brsf": 0.91,
    "dfa": 1.61,
}

# What there is to say where our numbers differ from the papers'; by experiment.
# arXiv 2606.21126, CIFAR-10: whether trained blocks gain 2 points over frozen ones. FA
# has 0.401, DFA at the blocks' outputs 0.306, frozen blocks 0.349.
AUDIT = {"FA": True, "DFA at blocks": False}

REMARKS = {
    "akrout_mnist": """\
Batches are drawn anew in each epoch, where the authors have one order; a mirror's \
pass comes with the step, where theirs comes after it, and the 468 before training go \
without biases. Their angle of the errors is that of a single training example, ours \
that of the first 512. Theirs is one run, without a standard error.""",
    "table1": """\
FA, adaFA and GD are within two combined standard errors of the paper, in its order; \
sign-FA lies 7 points below it. What was looked into, on the classes of table1_tuning \
after 40 epochs where nothing else is said:

Scale of sign-FA's B. The paper's definition is sign(W), without a scale, and it names \
none for its experiments. Ours keeps the size of W at the start, sqrt(2 / (fan in + \
fan out)), about 0.05 in C2 and 0.09 in F2. With it sign-FA fits more slowly than GD: \
after 500 epochs 74% and 76% of the training labels, GD 89% and 94%. On the classes of \
table1_tuning it reaches 45.2%; with a scale of 0.1 in every layer 55.1%, with 0.2 \
53.4%, while GD reaches 49.4%. So the scale may well be the difference; other scales \
were not run to 500 epochs, which would tell.

Classes. GD reaches 70.3% and 74.8% on our two samples of classes. A standard error of \
0.2 leaves no room for such a spread: the paper's repetitions probably shared one.

Learning rate: at 0.03 FA, sign-FA and GD are ahead of 0.01 after 40 epochs, at 0.003 \
behind; so short a run favours large rates. Weight decay: 0 and 1e-4 differ by less \
than 1.5 points. drop_last, four steps an epoch instead of five: GD 44.9% instead of \
49.4%, so it cannot be what lifts the paper's numbers. The initialisation is the \
paper's, Glorot uniform, but for the biases, on which it is silent: ours start at \
zero.""",
    "table1_tuning": """\
40 epochs tell which rate is the fastest, not which ends best after 500, for which the \
paper chose: its 0.01 was kept.""",
    "table2": """\
An excerpt of Tiny-ImageNet with 20 of its 200 classes, 10 of them drawn, one seed, \
and 7 of the paper's 50 epochs: what 16 minutes a method on one core allow. The \
numbers say that the methods train, and how they start; the paper's are where they \
end. The missing cells are the whole grid's, with 50 epochs each.""",
    "table3": """\
FA, adaFA and sign-FA stay below the paper's value + 2 SE at every width; where they \
differ by more than two combined standard errors, ours is the smaller: the law is \
conserved better than printed.

GD is above it at widths 100 and 200, and below at 15 to 60. The printed column is not \
GD's conserved quantity: with B = W, <W2, W2> has a factor 1/2 too much, so that the \
column measures ½ Δ|W2|² / |Φ(0)|, how far training moved, and no error of the law. \
GD's own law, in the second table, holds to 0.003 at every width from 60 on. How far \
training moves depends on the scale of the inputs, on which the paper is silent. After \
1,000 epochs at seed 0 the column is 9.2, 4.06, 1.29, 0.36 at widths 15, 30, 60, 200 \
with standardised inputs, and 10.3, 3.76, 1.06, 0.25 with pixels in [0, 1] \
(--config.dataset.standardize=none --config.epochs=1000): the latter brings width 200 \
near the paper's 0.2 and takes width 60 away from its 1.4.""",
    "rk23": """\
Two of three ReLU networks stop on a plateau of the loss. The law does not say that \
training reaches zero, and the conserved ratio is as good there as elsewhere.""",
    "song_cutoff": """\
The theorem needs a penalty λ = L gamma, L large. The smallest eigenvalue of XXᵀ, \
gamma, is 28 to 34 in these data. λ = 1, 2 and 5 are far below it; in the linear \
network, whose steps are the smallest, they shrink β by 1 - exp(-ηλT) = 26% to 78% \
only before they end, and little alignment can be left. λ = 50 is in the theorem's \
range, and there the linear network ends with a cosine of 0.70, almost as high as when \
the penalty ended. tanh networks reach 0.5 with any of them.""",
    "song_synthetic": """\
The paper has these numbers in figures only. tanh saturates: its alignment depends on \
whether there is a penalty more than on how large it is.""",
}
