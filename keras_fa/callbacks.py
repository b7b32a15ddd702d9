"""Callbacks that put the instruments' readings into the logs of `model.fit`.

Give them before `CSVLogger`, `TensorBoard` or `EarlyStopping` in the list of callbacks:
Keras hands the logs from one to the next, and a reader sees only what was added before
it. Formulas live in `keras_fa.analysis`; here is only when and under which name.
"""

import keras
import numpy as np

from keras_fa import analysis


class _Instrument(keras.callbacks.Callback):
    """Reads something at the end of every `every`-th epoch and adds it to the logs."""

    def __init__(self, every=1):
        if not isinstance(every, int) or every < 1:
            raise ValueError(f"`every` must be a positive integer, not {every!r}.")
        super().__init__()
        self.every = every

    def read(self):
        """The readings now: dict from log key to number."""
        raise NotImplementedError

    def on_epoch_end(self, epoch, logs=None):
        if (epoch + 1) % self.every == 0 and logs is not None:
            logs.update(self.read())


class WeightAlignment(_Instrument):
    """Logs `alignment/<layer>`: the cosine of W and B of every feedback layer.

    Source: definition 4.1 of Robertson and Koyejo (2024).

    Args:
        every: Epochs between two readings.

    Raises:
        ValueError: If `every` is not a positive integer.
    """

    def read(self):
        return {
            f"alignment/{layer}": cosine
            for layer, cosine in analysis.weight_alignment(self.model).items()
        }


class Conservation(_Instrument):
    """Logs how far the conserved quantities of the model have moved.

    For each conserved group with potentials `Phi_j` (`keras_fa.analysis.potentials`,
    theorem 5.2 of Robertson and Koyejo (2024) and its extensions):

    - `conservation/<group>`: mean over units of `|Phi_j / Phi_j(0) - 1|`;
    - `drift/<group>`: mean over units of `|Phi_j - Phi_j(0)|`, which stays meaningful
      where `Phi_j(0)` is near 0;
    - `potential/<group>`: `sum_j Phi_j`, the layer-level quantity of the paper.

    `Phi(0)` is read when training begins and is part of `get_state`, so that after a
    resume the drift is still measured against the first start.

    Args:
        every: Epochs between two readings.

    Raises:
        ValueError: If `every` is not a positive integer.
    """

    def __init__(self, every=1):
        super().__init__(every)
        self.reference = None
        self._groups = None

    def on_train_begin(self, logs=None):
        self._groups = analysis.conserved_groups(self.model)
        if self.reference is None:
            self.reference = analysis.potentials(self.model, self._groups)

    def read(self):
        logs = {}
        for name, phi in analysis.potentials(self.model, self._groups).items():
            start = self.reference[name]
            with np.errstate(divide="ignore", invalid="ignore"):
                deviation = np.mean(np.abs(phi / start - 1))
            logs[f"conservation/{name}"] = float(deviation)
            logs[f"drift/{name}"] = float(np.mean(np.abs(phi - start)))
            logs[f"potential/{name}"] = float(np.sum(phi))
        return logs

    def get_state(self):
        """The reference potentials, as lists that JSON can hold."""
        return {name: phi.tolist() for name, phi in self.reference.items()}

    def set_state(self, state):
        """Takes the reference potentials of the run's first start."""
        self.reference = {name: np.asarray(phi) for name, phi in state.items()}
