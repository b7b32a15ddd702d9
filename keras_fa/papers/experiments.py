"""The list of experiments: which grid's runs make which tables and figures."""

import dataclasses

from keras_fa.papers import (
    akrout,
    audits,
    class_subsets,
    convergence,
    lemmas,
    linear_map,
    mnist_errors,
    noisy_mnist,
    precision,
    printed,
    song,
    standing,
    theorems,
)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """How an experiment's section is made.

    Attributes:
        grid: Name of the grid, and of the folder of its runs; None where there is none.
        title: For people.
        source: Where it is in which paper.
        parts: Functions of (section, runs, folder of the figures).
        measures: Functions of a run's log whose numbers a record of the run keeps.
        stored: CSV files and images to show where no run is left.
        beside: Further grids whose runs the parts are given.
        paper: What the paper has: (function of the runs that counts those that are as
            long as the paper's, how many the paper has, of what); None where the paper
            does not say.
        measured: Name of the measurement (`keras-fa measure`) that the section is made
            of in the place of runs: the parts take its rows.
    """

    grid: str
    title: str
    source: str
    parts: tuple
    measures: tuple = ()
    stored: tuple = ()
    beside: tuple = ()
    paper: tuple | None = None
    measured: str = ""


def measures(grid):
    """What experiments measure on whole logs of a grid that is theirs or beside them.

    See `records.record`.
    """
    experiments = EXPERIMENTS.values()
    chosen = [e.measures for e in experiments if grid in (e.grid, *e.beside)]
    return tuple(dict.fromkeys(f for some in chosen for f in some))


def _with(function, *arguments):
    def part(section, runs, folder):
        function(section, runs, folder, *arguments)

    return part


def _long(total, unit="cells", **settings):
    """How much of the paper's there is: runs with settings of the paper's."""

    def count(runs):
        return sum(
            all(
                run.settings.get(k.replace("__", ".")) == v for k, v in settings.items()
            )
            for run in runs
        )

    return count, total, unit


def _theorem(name, title, source, part):
    return Experiment(None, title, source, (part,), measured=name)


def _repetitions(runs):
    return len({run.settings["seed"] for run in runs})


_TABLE3 = _long(240, epochs=6000)
EXPERIMENTS = {
    "table3": Experiment(
        "table3",
        "Noisy MNIST: how well the law is conserved",
        "RK24, table 3",
        (noisy_mnist.table3,),
        (noisy_mnist.deviation, noisy_mnist.own_law),
        paper=_TABLE3,
        stored=("table3.csv",),
    ),
    "table3_steps": Experiment(
        "table3_steps",
        "Noisy MNIST: the law at larger steps over the same time",
        "RK24, table 3",
        (noisy_mnist.larger_steps,),
        (noisy_mnist.deviation_at_end,),
        stored=("table3_steps.csv",),
    ),
    "fig2": Experiment(
        "table3",
        "Noisy MNIST: the conserved ratio",
        "RK24, figure 2",
        (noisy_mnist.figure2,),
        paper=_TABLE3,
        stored=("figures/fig2.png",),
    ),
    "fig3": Experiment(
        "table3",
        "Noisy MNIST: alignment",
        "RK24, figure 3",
        (noisy_mnist.figure3,),
        (noisy_mnist.above_bound,),
        paper=_TABLE3,
        stored=("fig3.csv", "figures/fig3.png"),
    ),
    "fig4": Experiment(
        "table3",
        "Noisy MNIST: test loss against width",
        "RK24, figure 4",
        (noisy_mnist.figure4,),
        paper=_TABLE3,
        stored=("fig4.csv", "figures/fig4.png"),
    ),
    "noise_fitted": Experiment(
        "noise_fitted",
        "Noisy MNIST without decay of the learning rate: is overfitting benign?",
        "RK24, figure 4",
        (_with(noisy_mnist.figure4, "noise_fitted"),),
        (noisy_mnist.least_test_loss,),
    ),
    "table1": Experiment(
        "table1",
        "LeNet on CIFAR-100 subsets",
        "RK24, table 1",
        (_with(class_subsets.accuracies, 1),),
        (class_subsets.best_accuracy, class_subsets.late_accuracy),
        stored=("table1_earlier.csv",),
        paper=_long(72, epochs=500),
    ),
    "hypothesis2": Experiment(
        "table1",
        "LeNet: accuracy against the angle to the true gradient",
        "RK24, section 6, hypothesis 2",
        (class_subsets.gradient_scatter,),
    ),
    "table1_variants": Experiment(
        "table1_variants",
        "LeNet: what closes sign-FA's gap to GD",
        "RK24, table 1",
        (class_subsets.variants,),
        (class_subsets.best_accuracy, class_subsets.late_accuracy),
        beside=("table1", "table1_short"),
    ),
    "table1_tuning": Experiment(
        "table1_tuning",
        "LeNet: learning rate and weight decay on other classes",
        "RK24, appendix A",
        (class_subsets.tuning,),
        stored=("table1_tuning.csv",),
    ),
    "fig5": Experiment(
        "table1",
        "LeNet: alignment at 10 classes",
        "RK24, figure 5",
        (_with(class_subsets.layer_alignment, 10),),
        stored=("fig5_earlier.csv", "figures/fig5.png"),
        paper=_long(24, epochs=500, dataset__num_classes=10),
    ),
    "fig6": Experiment(
        "table1",
        "LeNet: alignment at 25 classes",
        "RK24, figure 6",
        (_with(class_subsets.layer_alignment, 25),),
        paper=_long(24, epochs=500, dataset__num_classes=25),
    ),
    "fig7": Experiment(
        "table1",
        "LeNet: alignment at 50 classes",
        "RK24, figure 7",
        (_with(class_subsets.layer_alignment, 50),),
        paper=_long(24, epochs=500, dataset__num_classes=50),
    ),
    "alignment_by_classes": Experiment(
        "table1",
        "LeNet: alignment by the number of classes",
        "RK24, figures 5 to 7",
        (class_subsets.alignment_by_classes,),
        paper=_long(72, epochs=500),
    ),
    "table2": Experiment(
        "table2",
        "ResNet-18 on Tiny-ImageNet subsets",
        "RK24, table 2",
        (_with(class_subsets.accuracies, 2),),
        (class_subsets.best_accuracy, class_subsets.late_accuracy),
        paper=_long(48, epochs=50),
    ),
    "table2_excerpt": Experiment(
        "table2_excerpt",
        "ResNet-18 on an excerpt of Tiny-ImageNet",
        "beside RK24, table 2",
        (_with(class_subsets.excerpt, "table2_excerpt"),),
        (class_subsets.best_accuracy, class_subsets.late_accuracy),
        stored=("table2_excerpt.csv",),
    ),
    "convergence": Experiment(
        "convergence",
        "Convergence on separable and nearly orthogonal data",
        "RK24, theorem 5.1, proposition 5.7, lemma 5.4",
        (convergence.convergence,),
        stored=("convergence.csv", "figures/convergence.png"),
    ),
    "rk23": Experiment(
        "rk23",
        "Linear and ReLU networks on a linear map",
        "RK23, figures 1 and 2",
        (linear_map.linear_map,),
        stored=("rk23.csv", "figures/rk23_fig1.png", "figures/rk23_fig2.png"),
    ),
    "rk23_variants": Experiment(
        "rk23_variants",
        "The conserved ratio under other precision, rate, batch, depth, activation",
        "beside RK23, figure 1",
        (linear_map.variants,),
    ),
    "minimum_norm": Experiment(
        "minimum_norm",
        "The minimum-norm solution",
        "RK23, theorem 5.2 and section 6",
        (linear_map.minimum_norm,),
        stored=("minimum_norm.csv", "figures/minimum_norm.png"),
    ),
    "song_synthetic": Experiment(
        "song_synthetic",
        "A penalty makes wide networks align",
        "S21, figure 2",
        (song.song_synthetic,),
        stored=(
            "song_synthetic.csv",
            "figures/song_fig2_alignment.png",
            "figures/song_fig2_loss.png",
        ),
        paper=(_repetitions, 50, "repetitions"),
    ),
    "song_cutoff": Experiment(
        "song_cutoff",
        "A penalty that is cut off",
        "S21, theorem 4.6",
        (song.song_cutoff,),
        stored=(
            "song_cutoff.csv",
            "figures/song_cutoff_alignment.png",
            "figures/song_cutoff_loss.png",
        ),
    ),
    "song_mnist": Experiment(
        "song_mnist",
        "MNIST with a penalty on the output weights",
        "S21, figure 3",
        (song.song_mnist,),
        paper=_long(30, epochs=300, model__kernel_initializer="normal(1.0)"),
        stored=("song_mnist_earlier.csv", "figures/song_fig3.png"),
    ),
    "theorem_5_2": _theorem(
        "theorem_5_2",
        "The conservation law of single units",
        "RK24, theorem 5.2",
        theorems.theorem_5_2,
    ),
    "proposition_5_7": _theorem(
        "proposition_5_7",
        "Convergence with an alpha known before training",
        "RK24, theorem 5.1, proposition 5.7",
        theorems.proposition_5_7,
    ),
    "rk23_theorems": _theorem(
        "rk23",
        "Linear networks: minimum norm on and off the span, rate, corollary",
        "RK23, theorems 5.1 and 5.2, lemma A.1",
        theorems.rk23,
    ),
    "theorem_3_2": _theorem(
        "theorem_3_2",
        "Wide tanh networks converge with lazy weights",
        "S21, theorem 3.2; RK24, theorem 5.1 at beta = 1",
        theorems.theorem_3_2,
    ),
    "proposition_3_3": _theorem(
        "proposition_3_3",
        "The kernel's smallest eigenvalue",
        "S21, proposition 3.3",
        theorems.proposition_3_3,
    ),
    "theorem_4_2": _theorem(
        "theorem_4_2",
        "Contraction under a penalty, tanh",
        "S21, theorem 4.2",
        _with(theorems.contraction, "4.2"),
    ),
    "theorem_4_3": _theorem(
        "theorem_4_3",
        "Contraction under a penalty, linear",
        "S21, theorem 4.3",
        _with(theorems.contraction, "4.3"),
    ),
    "proposition_4_5": _theorem(
        "proposition_4_5",
        "Gaussian inputs are nearly isometric",
        "S21, definition 4.4, proposition 4.5",
        theorems.proposition_4_5,
    ),
    "theorem_4_6": _theorem(
        "theorem_4_6",
        "Alignment that stays after the penalty has ended",
        "S21, theorem 4.6",
        theorems.theorem_4_6,
    ),
    "figure2_steps": _theorem(
        "figure_2",
        "A penalty makes wide networks align, after more and more steps",
        "S21, figure 2",
        theorems.figure_2,
    ),
    "lemma_a_1": _theorem(
        "lemma_a_1",
        "The expected kernel of Gaussian inputs",
        "S21, lemma A.1",
        lemmas.simple_matrix_section,
    ),
    "lemmas_a_2_b_2": _theorem(
        "lemmas_a_2_b_2",
        "Sizes at the start",
        "S21, lemmas A.2 and B.2",
        lemmas.start_section,
    ),
    "lemma_a_3": _theorem(
        "lemma_a_3",
        "The kernels at the start",
        "S21, lemma A.3",
        lemmas.kernels_at_start_section,
    ),
    "lemmas_a_4_a_7": _theorem(
        "lemmas_a_4_a_7",
        "Wide tanh networks: how far weights and kernels move",
        "S21, lemmas A.4 to A.7",
        lemmas.lazy_section,
    ),
    "lemmas_b_1_b_5": _theorem(
        "lemmas_b_1_b_5",
        "Linear networks: errors and weights by sums of errors",
        "S21, lemmas B.1 and B.3 to B.5",
        lemmas.sums_section,
    ),
    "lemmas_c_1_c_2": _theorem(
        "lemmas_c_1_c_2",
        "How nearly isometric Gaussian matrices are",
        "S21, lemma C.1 and corollary C.2",
        lemmas.isometry_section,
    ),
    "lemmas_c_3_c_4": _theorem(
        "lemmas_c_3_c_4",
        "Tails of chi squared and of products of Gaussians",
        "S21, lemmas C.3 and C.4",
        lemmas.tails_section,
    ),
    "akrout_mnist": Experiment(
        "akrout_mnist",
        "MNIST under Kolen-Pollack's rule and weight mirrors",
        "Akrout et al. (2019), the authors' code and logs",
        (akrout.akrout_mnist,),
    ),
    "lillicrap_mnist": Experiment(
        "lillicrap_mnist",
        "MNIST: the first network under feedback alignment",
        "Lillicrap et al. (2016)",
        (_with(mnist_errors.errors, printed.LILLICRAP),),
    ),
    "nokland_mnist": Experiment(
        "nokland_mnist",
        "MNIST: direct feedback from zero weights",
        "Nokland (2016)",
        (_with(mnist_errors.errors, printed.NOKLAND, 0.3),),
    ),
    "biotorch_mnist_lenet": Experiment(
        "biotorch_mnist_lenet",
        "MNIST: LeNet under the rules of biotorch",
        "biotorch (2021), benchmark table",
        (_with(mnist_errors.errors, printed.BIOTORCH, 0.3),),
    ),
    "audit": Experiment(
        "audit",
        "Does the depth of a residual MLP learn?",
        "arXiv 2606.21126, with ten classes of CIFAR-100 for CIFAR-10",
        (_with(audits.audits, printed.AUDIT),),
        stored=(
            "audit.csv",
            "figures/audit_residual_mlp_0.png",
            "figures/audit_residual_mlp_1.png",
        ),
    ),
    "small_networks": Experiment(
        "small_networks",
        "Does the depth of a small MobileNetV2 and a small ViT learn?",
        "none",
        (audits.audits,),
        stored=(
            "small_networks.csv",
            "figures/small_networks_mobilenet_0.png",
            "figures/small_networks_vit_0.png",
        ),
    ),
    "zoo": Experiment(
        "zoo",
        "The standing table: five small networks under six rules",
        "none",
        (standing.standing,),
        beside=("small_networks",),
    ),
    "precision": Experiment(
        "precision",
        "LeNet and ResNet-18 in half precision",
        "none",
        (precision.precision,),
    ),
}
