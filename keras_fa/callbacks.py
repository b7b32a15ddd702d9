"""Callbacks that put the instruments' readings into the logs of `model.fit`.

Give them before `CSVLogger`, `TensorBoard` or `EarlyStopping` in the list of callbacks:
Keras hands the logs from one to the next, and a reader sees only what was added before
it. Formulas live in `keras_fa.analysis`; here is only when, and under which name.
"""

import importlib.util
import math
import warnings

import keras
import numpy as np

from keras_fa import _keras, analysis, autodiff
from keras_fa.analysis import _audit, _survey
from keras_fa.registry import register


class _Instrument(keras.callbacks.Callback):
    """Takes a reading from time to time and adds it to the logs.

    The first epoch of a `fit` always ends with a reading, since `CSVLogger` takes its
    columns from there. Between two readings the logs repeat the last one.

    An instrument belongs to one model. Another `fit` of the same model goes on with
    what the first began, Phi(0) above all; the `fit` of another model begins anew.

    Attributes:
        history: With `unit="step"`, the list of all readings, each a dict with the
            number of optimizer steps under `step`.
        last: The last reading of this `fit`, which the logs repeat until the next.
    """

    def __init__(self, every=1, unit="epoch", prefix="", quiet=False):
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(f"`every` must be a positive integer, not {every!r}.")
        if unit not in ("epoch", "step"):
            raise ValueError(f'`unit` must be "epoch" or "step", not {unit!r}.')
        if not isinstance(prefix, str):
            raise ValueError(f"`prefix` must be a text, not {prefix!r}.")
        super().__init__()
        self.every = every
        self.unit = unit
        self.prefix = prefix
        self.quiet = quiet
        self._owner = None
        self._forget()

    def _forget(self):
        """Drops what belongs to the model that it was used with."""
        self.history = []
        self._steps = 0
        self.last = {}
        self._begun = False

    def _begin(self):
        """Takes what readings are measured against, once callbacks restored weights."""

    def _measure(self):
        """The readings now: dict from log key, without the prefix, to number."""
        raise NotImplementedError

    def read(self):
        """The readings now: dict from log key to number."""
        self._begin_once()
        return {f"{self.prefix}{k}": value for k, value in self._measure().items()}

    def set_model(self, model):
        if self._owner is not None and model is not self._owner:
            self._forget()
        self._owner = model
        super().set_model(model)

    def on_train_begin(self, logs=None):
        self._steps = self._optimizer_steps()
        self.last = {}
        self._begun = False

    def on_epoch_begin(self, epoch, logs=None):
        self._begin_once()

    def on_train_batch_begin(self, batch, logs=None):
        self._begin_once()

    def on_train_batch_end(self, batch, logs=None):
        if self.unit == "epoch":
            return
        steps = self._optimizer_steps()
        # A call may make several steps (`steps_per_execution`).
        if steps // self.every > self._steps // self.every:
            self._log(logs, self._record())
        self._steps = steps

    def on_epoch_end(self, epoch, logs=None):
        readings = self.last
        if not readings or (self.unit == "epoch" and (epoch + 1) % self.every == 0):
            readings = self._record()
        self._log(logs, readings)

    def _begin_once(self):
        if not self._begun:
            self._begun = True
            self._begin()

    def _record(self):
        readings = self.read()
        if self.unit == "step":
            self.history.append({"step": self._optimizer_steps(), **readings})
        return readings

    def _log(self, logs, readings):
        """Adds readings to the logs; ValueError if another callback has been there."""
        if logs is not None:
            for key, value in readings.items():
                # One dict may serve a hand-written loop for all its epochs.
                if key in logs and logs[key] is not self.last.get(key):
                    raise ValueError(
                        f"{type(self).__name__} finds {key!r} in the logs already, "
                        "from another callback or a metric. Give one of two "
                        'instruments a prefix, such as prefix="test_".'
                    )
                logs[key] = value
        self.last = readings
        if self.quiet:
            _keras.hide_from_progress_line(self.model, readings)

    def _optimizer_steps(self):
        return int(autodiff.array(self.model.optimizer.iterations))


@register("instrument", "weight_alignment")
class WeightAlignment(_Instrument):
    """Logs the angle between W and B of every feedback layer.

    - `alignment/<layer>`: `cos(W, B)`, definition 4.1 of Robertson and Koyejo (2024);
    - `alignment_bound/<layer>`: what theory guarantees of it, where it guarantees
      anything: see `keras_fa.analysis.weight_alignment_bounds`;
    - with `degrees`, `angle/<layer>`: the angle itself;
    - with `terms`, `norm/<layer>` and `inner/<layer>`: |W| and <W, B>; where a rule
      learns B or moves it also `feedback_norm/<layer>` and `distance/<layer>`: |B| and
      |W - B|;
    - `smallest/<layer>`, for a layer with one output: the smallest weight, which lemma
      5.4 keeps positive where its conditions are met.

    Args:
        every: Epochs or steps between two readings.
        unit: "epoch" or "step".
        terms: Whether to log norms and inner products too.
        prefix: What to put before each key.
        quiet: Whether to stay out of the line that `fit` prints.
        degrees: Whether to log the angles in degrees too.

    Raises:
        ValueError: If `every`, `unit` or `prefix` is not one of these, or, in training,
            if another callback writes the same keys.
    """

    def __init__(
        self,
        every=1,
        unit="epoch",
        terms=False,
        prefix="",
        quiet=False,
        degrees=False,
    ):
        super().__init__(every, unit, prefix, quiet)
        self.terms, self.degrees = terms, degrees

    def _forget(self):
        super()._forget()
        self._bounds = None

    def _begin(self):
        if self._bounds is None:
            bounds = analysis.weight_alignment_bounds(self.model)
            self._bounds = {k: v for k, v in bounds.items() if v is not None}

    def _measure(self):
        logs = {}
        distances = analysis.feedback_distances(self.model) if self.terms else {}
        for layer, terms in analysis.alignment_terms(self.model).items():
            logs[f"alignment/{layer}"] = terms.cosine
            if self.degrees:
                logs[f"angle/{layer}"] = terms.degrees
            if self.terms:
                logs[f"norm/{layer}"] = terms.true_norm
                logs[f"inner/{layer}"] = terms.inner_product
            if layer in distances:
                logs[f"feedback_norm/{layer}"] = terms.feedback_norm
                logs[f"distance/{layer}"] = distances[layer]
        logs |= {f"alignment_bound/{k}": v for k, v in self._bounds.items()}
        smallest = analysis.smallest_weights(self.model)
        return logs | {f"smallest/{k}": v for k, v in smallest.items()}

    def get_state(self):
        """The bounds of the first start, which may depend on the weights it had."""
        return self._bounds

    def set_state(self, state):
        """Takes the bounds of the run's first start."""
        self._owner, self._bounds = None, state


@register("instrument", "conservation")
class Conservation(_Instrument):
    """Logs how far the conserved quantities of the model have moved.

    For each conserved group with potentials `Phi_j` (`keras_fa.analysis.potentials`,
    theorem 5.2 of Robertson and Koyejo (2024) and its extensions):

    - `conservation/<group>`: mean over units of `|Phi_j / Phi_j(0) - 1|`
      (`keras_fa.analysis.relative_drift`);
    - `drift/<group>`: mean over units of `|Phi_j - Phi_j(0)|`
      (`keras_fa.analysis.drift`), which stays meaningful where `Phi_j(0)` is near 0;
    - `potential/<group>`: `sum_j Phi_j`, the layer-level quantity of the paper;
    - `potential_ratio/<group>`: `sum_j Phi_j / sum_j Phi_j(0)`.

    With `ledger` also, summed over units (`keras_fa.analysis.Ledger`):

    - `ledger/measured/<group>`: the change of `sum_j Phi_j`;
    - `ledger/squared_steps/<group>`, `ledger/flips/<group>` and
      `ledger/first_order/<group>`: the three terms that make it up;
    - `ledger/remainder/<group>`: what they leave unexplained, the largest of a unit.

    `Phi(0)` is read when training begins, after all callbacks have restored what they
    restore, and is part of `get_state`, so that after a resume everything is still
    measured against the first start. If the groups change between two trainings of a
    model, as they do with `trainable`, new ones are measured from then on, with a
    warning. A model without any law trains on with a warning that says why there is
    none.

    Args:
        every: Epochs or steps between two readings.
        unit: "epoch" or "step".
        ledger: Whether to keep the ledger, which reads all weights after every step.
        histogram_dir: TensorBoard folder for histograms of the units' deviations
            `Phi_j - Phi_j(0)`, one per group and reading; None for none.
        prefix: What to put before each key.
        quiet: Whether to stay out of the line that `fit` prints.

    Raises:
        ValueError: If `every`, `unit` or `prefix` is not one of these, or, in training,
            if another callback writes the same keys, or a ledger meets
            `steps_per_execution` > 1: the callback would see several steps as one.
        ImportError: If there is a `histogram_dir` and no TensorFlow.
    """

    def __init__(
        self,
        every=1,
        unit="epoch",
        ledger=False,
        histogram_dir=None,
        prefix="",
        quiet=False,
    ):
        super().__init__(every, unit, prefix, quiet)
        if histogram_dir is not None and importlib.util.find_spec("tensorflow") is None:
            raise ImportError(
                "Histograms for TensorBoard are written by TensorFlow, which is not "
                "installed. Leave `histogram_dir` out, or install it: "
                "pip install 'tensorflow>=2.21,<2.22'."
            )
        self.ledger = ledger
        self.histogram_dir = histogram_dir
        self._writer = None

    def _forget(self):
        super()._forget()
        self.reference = None
        self._groups = []
        self._books = None
        # The groups of the reference, as texts, and the books that `set_state` brought.
        self._laws = {}
        self._booked = {}

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        self._groups = self._lawful_groups()
        if self.ledger and self.model.steps_per_execution > 1:
            raise ValueError(
                "The ledger accounts for single steps, but the model was compiled with "
                f"steps_per_execution={self.model.steps_per_execution}, which hides "
                "them. Compile it with steps_per_execution=1, or use ledger=False."
            )

    def _lawful_groups(self):
        try:
            groups = analysis.conserved_groups(self.model)
        except ValueError as error:
            warnings.warn(f"Conservation logs nothing: {error}", stacklevel=4)
            return []
        lawful = [group for group in groups if group.conserved]
        if not lawful:
            why = [str(group) for group in groups[:3]]
            if len(groups) > 3:
                why.append(
                    f"and {len(groups) - 3} more, which "
                    "keras_fa.analysis.conserved_groups(model) has"
                )
            warnings.warn(
                f"Conservation logs nothing: '{self.model.name}' has no conserved "
                f"group. {'; '.join(why) or 'It has no hidden layer.'}",
                stacklevel=4,
            )
        return lawful

    def _begin(self):
        laws = {group.name: str(group) for group in self._groups}
        now = analysis.potentials(self.model, self._groups)
        earlier = self.reference or {}
        kept = {
            name
            for name, phi in now.items()
            if name in earlier
            and np.shape(earlier[name]) == phi.shape
            and self._laws.get(name, laws[name]) == laws[name]
        }
        if self.reference is not None and kept != now.keys():
            warnings.warn(
                "The conserved groups are not those of the training before. From here "
                f"on Conservation measures {', '.join(sorted(now.keys() - kept))} too.",
                stacklevel=5,
            )
        self.reference = {n: earlier[n] if n in kept else now[n] for n in now}
        if self.ledger and (self._books is None or laws != self._laws):
            booked = self._books.state() if self._books is not None else self._booked
            self._books = analysis.Ledger(self.model, self._groups)
            # Keys are those of a group, or "steps".
            kept.add("")
            booked = {k: v for k, v in booked.items() if k.rpartition("/")[0] in kept}
            self._books.load_state(self._books.state() | booked)
        self._laws = laws

    def on_train_batch_end(self, batch, logs=None):
        # JAX has the weights in its variables only once it was asked for the model.
        if self.ledger and self.model is not None:
            self._books.step()
        super().on_train_batch_end(batch, logs)

    def _measure(self):
        logs = {}
        for name, phi in analysis.potentials(self.model, self._groups).items():
            start = self.reference[name]
            logs[f"conservation/{name}"] = analysis.relative_drift(phi, start)
            logs[f"drift/{name}"] = analysis.drift(phi, start)
            logs[f"potential/{name}"] = float(np.sum(phi))
            with np.errstate(divide="ignore", invalid="ignore"):
                ratio = float(np.sum(phi) / np.sum(start))
            logs[f"potential_ratio/{name}"] = ratio
            if self.histogram_dir is not None:
                self._write_histogram(name, phi - start)
        if self.ledger:
            for name, entry in self._books.report().items():
                for term in ("measured", "squared_steps", "flips", "first_order"):
                    value = float(np.sum(getattr(entry, term)))
                    logs[f"ledger/{term}/{name}"] = value
                remainder = float(np.max(np.abs(entry.remainder)))
                logs[f"ledger/remainder/{name}"] = remainder
        return logs

    def on_train_end(self, logs=None):
        if self._writer is not None:
            self._writer.flush()

    def _write_histogram(self, name, deviations):
        import tensorflow as tf

        if self._writer is None:
            self._writer = tf.summary.create_file_writer(str(self.histogram_dir))
        step = self._optimizer_steps()
        with self._writer.as_default():
            tf.summary.histogram(f"deviation/{name}", deviations, step=step)

    def get_state(self):
        """References and ledger, as nested lists that JSON can hold."""
        reference = self.reference or {}
        books = self._books.state() if self._books is not None else {}
        return {
            "reference": {name: phi.tolist() for name, phi in reference.items()},
            "ledger": {key: values.tolist() for key, values in books.items()},
        }

    def set_state(self, state):
        """Takes the references and the ledger of the run's first start."""
        self._forget()
        self._owner = None
        self.reference = {k: np.asarray(v) for k, v in state["reference"].items()}
        # The ledger itself is opened when training begins, on the restored weights.
        self._booked = {k: np.asarray(v) for k, v in state["ledger"].items()}


class _Probe(_Instrument):
    """An instrument that runs the model on a fixed batch."""

    # What compares both passes.
    _comparison = analysis.GradientAlignment

    def __init__(
        self,
        x,
        y,
        every=1,
        unit="epoch",
        loss=None,
        prefix="",
        quiet=False,
        sample_weight=None,
        loss_weights=None,
    ):
        super().__init__(every, unit, prefix, quiet)
        self.x, self.y, self.sample_weight = x, y, sample_weight
        self._loss, self._loss_weights = loss, loss_weights
        self._compare = self._weights = None

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        self._weights = self._weights_of_examples()
        self._compare = self._comparison(
            self.model, self._loss, loss_weights=self._loss_weights
        )

    def _weights_of_examples(self):
        class_weight, weighted = _keras.weights_of_fit(self.model)
        if self.sample_weight is not None:
            return self.sample_weight
        if class_weight is not None:
            return _keras.class_weights(self.y, class_weight)
        if weighted:
            raise ValueError(
                f"{type(self).__name__} would measure another objective than the one "
                "that is trained: the training data have sample weights. Give it the "
                "`sample_weight` of its own examples, all ones if they count alike."
            )
        return None


@register("instrument", "gradient_alignment")
class GradientAlignment(_Probe):
    """Logs the angle between the feedback gradient and the true gradient on a batch.

    - `gradient_cosine` and `gradient_cosine/<layer>`: cos(omega) of equation (1) of
      Robertson and Koyejo (2024), for the whole network and each layer;
    - `gradient_norm` and `feedback_gradient_norm`, of the whole network and each
      layer in the same way: a cosine against a gradient of rounding errors means
      nothing;
    - `gradient_inner`: their inner product, the rate at which equation (1) lets the
      loss fall along the feedback flow;
    - `gradient_loss`: the loss on the batch.

    See `keras_fa.analysis.gradient_alignment`: weights, batch, dropout masks and
    BatchNorm mode are the same on both sides, and nothing in the model changes.

    Args:
        x: Inputs of the batch, as the model takes them.
        y: Targets of the batch.
        every: Epochs or steps between two readings.
        unit: "epoch" or "step".
        loss: The loss; None takes the compiled model's.
        prefix: What to put before each key: two instruments on two batches need
            different ones, such as "" and "test_".
        quiet: Whether to stay out of the line that `fit` prints.
        sample_weight: What each example of the batch counts. None takes the
            `class_weight` of `fit`, where it was given one.
        loss_weights: As `compile` takes them, with a loss for each output.

    Raises:
        ValueError: If `every`, `unit` or `prefix` is not one of these, or, in training,
            if another callback writes the same keys, or if the training data have
            sample weights and the batch has none.
    """

    def _measure(self):
        result = self._compare(self.x, self.y, self._weights)
        logs = {"gradient_inner": result.inner_product, "gradient_loss": result.loss}
        for suffix, terms in [
            ("", result.whole),
            *((f"/{layer}", terms) for layer, terms in result.layers.items()),
        ]:
            logs[f"gradient_cosine{suffix}"] = terms.cosine
            logs[f"gradient_norm{suffix}"] = terms.true_norm
            logs[f"feedback_gradient_norm{suffix}"] = terms.feedback_norm
        return logs


@register("instrument", "error_alignment")
class ErrorAlignment(_Probe):
    """Logs the angle between the error signals at each hidden layer on a batch.

    `error_cosine/<layer>`: cos(delta_BP, delta_FA), section 5 of Song, Xu and Lafferty
    (2021): see `keras_fa.analysis.error_alignment`. Arguments and errors are those of
    `GradientAlignment`, and `per_example`, for the errors of all examples side by side
    in place of their sum.
    """

    def __init__(
        self,
        x,
        y,
        every=1,
        unit="epoch",
        loss=None,
        prefix="",
        quiet=False,
        sample_weight=None,
        loss_weights=None,
        per_example=False,
    ):
        super().__init__(
            x, y, every, unit, loss, prefix, quiet, sample_weight, loss_weights
        )
        self.per_example = per_example

    def _measure(self):
        signals = self._compare.errors(self.x, self.y, self.per_example, self._weights)
        return {f"error_cosine/{name}": s.cosine for name, s in signals.items()}


@register("instrument", "audit")
class Audit(_Probe):
    """Logs the parts of an audit that need no other trainings: see `keras_fa.audit`.

    For each layer with weights, each block and each sum of a residual stream:

    - `audit/growth/<layer>`: the norm of its output over that when training began;
    - `audit/signal/<layer>`: norm of the true error signal there, per example;
    - `audit/measurable/<layer>`: 1, or 0 where that is under its rounding floor or not
      finite: the next four keys have nan then, which the files of a run hold as null;
    - `audit/signal_cosine/<layer>`: cosine of the error signals;
    - `audit/rank/<layer>` and `audit/true_rank/<layer>`: their effective ranks, that
      through the feedback and the true one;
    - `audit/cosine/<layer>`: cosine of the gradients of its weights.

    What growth is measured against is read when training begins and is part of
    `get_state`. A reading costs three training steps on the batch: one no larger than
    those of training, every 50 steps, makes training a tenth slower at most.

    Args:
        x: Inputs of the batch, as the model takes them.
        y: Targets of the batch.
        every: Steps or epochs between two readings.
        unit: "step" or "epoch".
        loss: The loss; None takes the compiled model's.
        prefix: What to put before each key.
        quiet: Whether to stay out of the line that `fit` prints.
        sample_weight: As for `GradientAlignment`.
        loss_weights: Likewise.

    Raises:
        ValueError: As for `GradientAlignment`.
    """

    _comparison = _survey.Survey

    def __init__(self, x, y, every=50, unit="step", **arguments):
        super().__init__(x, y, every, unit, **arguments)

    def _forget(self):
        super()._forget()
        self._norms = None

    def _begin(self):
        if self._norms is None:
            self._norms = _survey.norms(self.model, self.x)

    def _measure(self):
        found = self._compare(self.x, self.y, self._weights)
        logs = {}
        for row in _audit.rows_of(self.model, found, self._norms):
            if row.signal is not None:
                readings = {"growth": row.growth, "signal": row.signal.true_norm}
                readings["signal_cosine"] = row.signal_cosine
                readings |= {"rank": row.rank, "true_rank": row.true_rank}
            else:
                readings = {}
            readings["measurable"] = int(row.unmeasurable is None)
            if row.gradient is not None:
                readings["cosine"] = row.cosine
            for name, value in readings.items():
                logs[f"audit/{name}/{row.layer}"] = math.nan if value is None else value
        return logs

    def get_state(self):
        """The norms of the first start."""
        return self._norms

    def set_state(self, state):
        """Takes the norms of the run's first start."""
        self._owner, self._norms = None, state


@register("instrument", "minimum_norm")
class MinimumNorm(_Instrument):
    """Logs how far a linear network is from the minimum-norm solution of its data.

    `minimum_norm_distance`: see `keras_fa.analysis.minimum_norm_distance`.

    Args:
        x: All training inputs, array (n, d_in).
        y: All training targets, array (n, d_out).
        every: Epochs or steps between two readings.
        unit: "epoch" or "step".
        prefix: What to put before each key.
        quiet: Whether to stay out of the line that `fit` prints.

    Raises:
        ValueError: If `every`, `unit` or `prefix` is not one of these, or, in training,
            if another callback writes the same key or the network is not linear in its
            input.
    """

    def __init__(self, x, y, every=1, unit="epoch", prefix="", quiet=False):
        super().__init__(every, unit, prefix, quiet)
        self.x, self.y = np.asarray(x), np.asarray(y)

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        forward, backward = self._map(1.0), self._map(-1.0)
        if not np.allclose(forward, -backward, rtol=1e-3, atol=1e-6):
            raise ValueError(
                "MinimumNorm speaks of linear networks, but this one takes x and -x to "
                "outputs that are not opposite. Leave it out, or make every activation "
                "linear."
            )

    def _measure(self):
        distance = analysis.minimum_norm_distance(self._map(1.0), self.x, self.y)
        return {"minimum_norm_distance": distance}

    def _map(self, scale):
        """What the network makes of the unit vectors times a scale, biases left out."""
        units = scale * np.eye(self.x.shape[1], dtype=self.x.dtype)
        outputs, zero = (autodiff.array(self.model(z)) for z in (units, 0 * units))
        return outputs - zero
