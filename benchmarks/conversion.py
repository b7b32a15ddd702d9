r"""Converts networks that are not ours, and says what came of it.

    python benchmarks/conversion.py                 # all, into results/conversion.csv
    python benchmarks/conversion.py --only=VGG16 --only=hub.Bert
    python benchmarks/conversion.py --laws          # the laws of all rows anew, no more

The networks are those of keras.applications, at their smallest input and without
weights, and, where keras-hub is installed beside us (`pip install keras-hub`), small
backbones of its models. Each is built in a process of its own, converted under two
rules, compared with the original on random inputs (largest difference of the outputs)
and trained for one step.

Columns: network; rule; parameters; maps, layers under the rule; left_out, layers with
weights that may be linear maps and are not under it; difference; loss of the step;
convert_seconds; step_seconds, the first step with its compilation; groups, conserved
groups with a law; without_law, groups without one; reasons, what these say, the most
frequent first: the kinds of operations that are not homogeneous, and the rest in words.
"""

import collections
import csv
import importlib.util
import multiprocessing
import pathlib
import re
import time

from absl import app, flags

_ONLY = flags.DEFINE_multi_string("only", [], "Names of networks; none: all.")
_LAWS = flags.DEFINE_bool(
    "laws", False, "Only find the conserved groups of the networks in the file again."
)
_OUT = flags.DEFINE_string(
    "out",
    str(pathlib.Path(__file__).resolve().parents[1] / "results" / "conversion.csv"),
    "The CSV file.",
)

# Of each family one or two: name and the side of the smallest image.
APPLICATIONS = {
    "VGG16": 32,
    "VGG19": 32,
    "ResNet50": 32,
    "ResNet50V2": 32,
    "MobileNet": 32,
    "MobileNetV2": 32,
    "MobileNetV3Small": 32,
    "MobileNetV3Large": 32,
    "DenseNet121": 32,
    "NASNetMobile": 32,
    "EfficientNetB0": 32,
    "EfficientNetV2B0": 32,
    "EfficientNetV2S": 32,
    "ConvNeXtTiny": 32,
    "Xception": 71,
    "InceptionV3": 75,
    "InceptionResNetV2": 75,
}

_TEXT = {
    "vocabulary_size": 50,
    "num_layers": 2,
    "num_heads": 2,
    "hidden_dim": 16,
    "intermediate_dim": 32,
}
_GROUPED = {
    "vocabulary_size": 50,
    "num_layers": 2,
    "num_query_heads": 4,
    "num_key_value_heads": 2,
    "hidden_dim": 16,
    "intermediate_dim": 32,
}
HUB = {
    "Albert": {**_TEXT, "embedding_dim": 8, "num_groups": 1},
    "Bart": _TEXT,
    "Bert": _TEXT,
    "Bloom": _TEXT,
    "DebertaV3": _TEXT,
    "DistilBert": _TEXT,
    "Electra": {
        **{k: v for k, v in _TEXT.items() if k != "vocabulary_size"},
        "vocab_size": 50,
        "embedding_dim": 8,
    },
    "FNet": {key: value for key, value in _TEXT.items() if key != "num_heads"},
    "GPT2": _TEXT,
    "GPTNeoX": _TEXT,
    "Gemma": {**_GROUPED, "head_dim": 4},
    "Llama": _GROUPED,
    "Mistral": {**_GROUPED, "sliding_window": 8},
    "OPT": _TEXT,
    "Phi3": _GROUPED,
    "Roberta": _TEXT,
    "T5": _TEXT,
    "Whisper": {**_TEXT, "max_encoder_sequence_length": 32, "num_mels": 4},
    "MiT": {
        "layerwise_depths": [1, 1],
        "num_layers": 2,
        "layerwise_num_heads": [1, 2],
        "layerwise_sr_ratios": [2, 1],
        "max_drop_path_rate": 0.0,
        "layerwise_patch_sizes": [7, 3],
        "layerwise_strides": [4, 2],
        "image_shape": (32, 32, 3),
        "hidden_dims": [8, 16],
    },
    "ResNet": {
        "input_conv_filters": [64],
        "input_conv_kernel_sizes": [7],
        "stackwise_num_filters": [64, 128],
        "stackwise_num_blocks": [1, 1],
        "stackwise_num_strides": [1, 2],
        "block_type": "bottleneck_block",
        "image_shape": (32, 32, 3),
    },
    "ViT": {
        "image_shape": (32, 32, 3),
        "patch_size": 8,
        "num_layers": 2,
        "num_heads": 2,
        "hidden_dim": 16,
        "mlp_dim": 32,
    },
}


def network(name):
    """A network by its name here."""
    import keras

    if not name.startswith("hub."):
        side = APPLICATIONS[name]
        return getattr(keras.applications, name)(
            weights=None,
            input_shape=(side, side, 3),
            classes=10,
            classifier_activation=None,
        )
    import keras_hub

    short = name.removeprefix("hub.")
    return getattr(keras_hub.models, f"{short}Backbone")(**HUB[short])


def inputs(model, random):
    """Two random examples for a model, as its inputs ask for them."""

    def draw(key, tensor):
        shape = [2, *(16 if n is None else n for n in tensor.shape[1:])]
        if "float" in str(tensor.dtype):
            # Whisper's spectrogram is twice as long as what comes out of it.
            return random.normal(size=shape).astype("float32")
        high = 2 if "mask" in key or "segment" in key else 50
        values = random.integers(0, high, shape)
        return values * 0 + 1 if "mask" in key else values

    if isinstance(model.input, dict):
        return {key: draw(key, tensor) for key, tensor in model.input.items()}
    return draw("", model.input)


def laws(model):
    """How many conserved groups a model has, with a law and without, and why not."""
    import keras_fa

    groups = keras_fa.analysis.conserved_groups(model)
    without = [group.reason for group in groups if not group.conserved]
    why = collections.Counter(reason for text in without for reason in _apart(text))
    return {
        "groups": len(groups) - len(without),
        "without_law": len(without),
        "reasons": "; ".join(f"{text}: {n}" for text, n in why.most_common()),
    }


def _apart(text):
    """The reasons of a group, those of one kind once."""
    return dict.fromkeys(map(_short, text.split("; ")))


def _short(reason):
    """A reason without the names of layers."""
    found = re.fullmatch(r"'.*' \((.*)\) is not known to be .*", reason)
    return found[1] if found else re.sub(r"'[^']*' ?", "", reason)


def laws_anew(name, rule):
    """`laws` of a network under a rule."""
    import keras_fa

    return laws(keras_fa.convert(network(name), rule, in_place=True)[0])


def _update(context):
    """Puts the laws into the rows that the file has."""
    with open(_OUT.value, newline="") as file:
        written = list(csv.DictReader(file))
    for name in dict.fromkeys(row["network"] for row in written):
        if _ONLY.value and name not in _ONLY.value:
            continue
        mine = [row for row in written if row["network"] == name]
        with context.Pool(1) as pool:
            # Which of the two rules it is does not matter to the groups.
            found = pool.apply(laws_anew, (name, mine[0]["rule"]))
        for row in mine:
            row |= found
        print(name, found, flush=True)
        _write(written)


def _write(written):
    columns = max(written, key=len)
    with open(_OUT.value, "w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(written)


def rows(name):
    """Converts a network under two rules: a list of dicts, one for each."""
    import keras
    import numpy as np

    import keras_fa

    keras.utils.set_random_seed(0)
    model = network(name)
    x = inputs(model, np.random.default_rng(0))
    expected = keras.tree.map_structure(np.asarray, model(x, training=False))
    y = keras.tree.map_structure(np.zeros_like, expected)
    found = []
    for rule in ("fa", "sign_fa"):
        start = time.perf_counter()
        new, report = keras_fa.convert(model, rule)
        seconds = time.perf_counter() - start
        outputs = keras.tree.map_structure(np.asarray, new(x, training=False))
        pairs = zip(
            keras.tree.flatten(outputs), keras.tree.flatten(expected), strict=True
        )
        difference = max(float(np.abs(a - b).max()) for a, b in pairs)
        new.compile("sgd", "mse")
        start = time.perf_counter()
        loss = new.fit(x, y, verbose=0).history["loss"][0]
        found.append(
            {
                "network": name,
                "rule": rule,
                "parameters": model.count_params(),
                "maps": len(report.converted),
                "left_out": len(report.left_out),
                "difference": difference,
                "loss": f"{loss:.6g}",
                "convert_seconds": f"{seconds:.1f}",
                "step_seconds": f"{time.perf_counter() - start:.1f}",
                **laws(new),
            }
        )
    for kind, number in collections.Counter(
        kind for _, kind, _ in report.left_out
    ).items():
        print(f"{name}: left out: {number} x {kind}", flush=True)
    return found


def main(argv):
    """Writes the table, network by network."""
    del argv
    names = list(APPLICATIONS)
    if importlib.util.find_spec("keras_hub"):
        names += [f"hub.{name}" for name in HUB]
    names = _ONLY.value or names
    context = multiprocessing.get_context("spawn")
    if _LAWS.value:
        _update(context)
        return
    written, failed = [], []
    for name in names:
        # One process each, so that the memory of one is free for the next.
        with context.Pool(1) as pool:
            try:
                written += pool.apply(rows, (name,))
            except Exception as error:
                failed.append(name)
                print(f"{name}: {type(error).__name__}: {error}", flush=True)
                continue
        print(*written[-2:], sep="\n", flush=True)
        # Anew after each, since all take long.
        _write(written)
    if failed:
        raise SystemExit(f"Not converted: {', '.join(failed)}.")


if __name__ == "__main__":
    app.run(main)
