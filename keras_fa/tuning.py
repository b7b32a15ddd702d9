"""Hyperparameter search with keras-tuner over the fields of a configuration.

A trial of `Search` is a run folder, so that it shows, stops and resumes like any run.
Whoever has a tuner of their own takes `hypermodel`.
"""

import difflib
import math
import pathlib

import keras
import keras_tuner
import ml_collections
import numpy as np

from keras_fa import config as configuration
from keras_fa import experiment, results

ALGORITHMS = ("random", "hyperband", "bayesian")

_FLOAT, _CHOICES = {"min", "max", "log"}, {"choices"}


def check_space(config, space):
    """Refuses a search space that could not be searched, before anything is run.

    Args:
        config: The configuration that the search changes.
        space: `{field: {"min": number, "max": number, "log": bool}}` for a number, the
            field's type deciding whether it is whole, or `{field: {"choices": list}}`.

    Raises:
        ValueError: If a field is unknown or its range is none.
    """
    if not space:
        raise ValueError("The search space is empty: name at least one field.")
    known = results.flatten(ml_collections.ConfigDict(config).to_dict())
    for field, values in space.items():
        if field not in known:
            close = difflib.get_close_matches(field, list(known), n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"The search space has an unknown field {field!r}.{hint}")
        if values.keys() == _CHOICES and len(values["choices"]) > 0:
            continue
        if not {"min", "max"} <= values.keys() <= _FLOAT:
            raise ValueError(
                f'The range of {field!r} must be {{"choices": [...]}} or {{"min": a, '
                f'"max": b}}, with "log": True for a logarithmic one. Received: '
                f"{values}."
            )
        low, high = values["min"], values["max"]
        if not low < high or (values.get("log") and low <= 0):
            raise ValueError(
                f"The range of {field!r} needs min < max, and min > 0 if it is "
                f"logarithmic. Received: {values}."
            )


def configure(config, space, parameters):
    """The configuration with the values that a tuner chose.

    Args:
        config: `ConfigDict`; stays as it is.
        space: As for `check_space`.
        parameters: `keras_tuner.HyperParameters`. Fields that it does not have yet are
            declared in it.

    Returns:
        `ConfigDict`.
    """
    changed = ml_collections.ConfigDict(config).copy_and_resolve_references()
    with changed.unlocked():
        for field, values in space.items():
            *path, last = field.split(".")
            section = changed
            for key in path:
                section = section[key]
            section[last] = _declare(parameters, field, values)
    return changed


def _declare(parameters, field, values):
    if "choices" in values:
        # keras-tuner's choices are numbers, strings and booleans; None is none of them.
        names = [str(choice) for choice in values["choices"]]
        return values["choices"][names.index(parameters.Choice(field, names))]
    low, high = values["min"], values["max"]
    sampling = "log" if values.get("log") else "linear"
    if isinstance(low, int) and isinstance(high, int):
        return parameters.Int(field, low, high, sampling=sampling)
    return parameters.Float(field, low, high, sampling=sampling)


def hypermodel(config, space):
    """A `keras_tuner.HyperModel` of a configuration, for any keras-tuner tuner.

    `tuner.search()` without data trains on the configuration's own data set and
    validates on its test set; data given to `search` is used instead.

    Args:
        config: `ConfigDict` with the fields of `keras_fa.config.default_config`.
        space: The fields to tune: as for `check_space`.

    Returns:
        The hypermodel.

    Raises:
        ValueError: If the configuration or the space is wrong.
    """
    configuration.check(config)
    check_space(config, space)
    return _HyperModel(config, space)


class _HyperModel(keras_tuner.HyperModel):
    def __init__(self, config, space):
        super().__init__(name="keras_fa")
        self._config, self._space = config, space

    def build(self, hp):
        config = configure(self._config, self._space, hp)
        return experiment.build(config, experiment.load(config))

    def fit(self, hp, model, *args, **kwargs):
        if not args and "x" not in kwargs:
            config = configure(self._config, self._space, hp)
            dataset = experiment.load(config)
            kwargs.setdefault("validation_data", dataset.test)
            kwargs.setdefault("epochs", config.epochs)
            kwargs.setdefault("verbose", 0)
            args = (dataset.train,)
        return model.fit(*args, **kwargs)


class StopEarly(keras.callbacks.EarlyStopping):
    """Keras's `EarlyStopping`, whose state a resumed run takes over."""

    def on_train_begin(self, logs=None):
        kept = getattr(self, "_kept", None)
        super().on_train_begin(logs)
        if kept is not None:
            self.wait, self.best = kept["wait"], kept["best"]

    def get_state(self):
        """How long there was no better reading, and the best one."""
        best = None if self.best is None else float(self.best)
        return {"wait": self.wait, "best": best}

    def set_state(self, state):
        """Takes over the state at the checkpoint."""
        self._kept = state


class Search:
    """A search whose trials are run folders.

    Under Hyperband a trial of a later round is trained anew, for as many epochs as its
    round has: nothing hangs on weights of another trial.

    Args:
        config: `ConfigDict` of the runs.
        space: The fields to tune: as for `check_space`.
        workdir: Folder of the search: trials in `trials/`, keras-tuner's state in
            `tuner/`.
        algorithm: "random", "hyperband" or "bayesian".
        trials: How many trials; Hyperband has as many as its rounds need.
        objective: Key of the log lines, `val_accuracy` or `val_loss` say.
        seed: Seed of the search.
        patience: Log lines without a better objective after which a trial is ended;
            None for never.

    Raises:
        ValueError: If one of these is wrong.
    """

    def __init__(
        self,
        config,
        space,
        workdir,
        algorithm="random",
        trials=12,
        objective="val_accuracy",
        seed=0,
        patience=None,
    ):
        configuration.check(config)
        check_space(config, space)
        if algorithm not in ALGORITHMS:
            raise ValueError(
                f"Unknown algorithm: {algorithm!r}. Known: {', '.join(ALGORITHMS)}."
            )
        self.config, self.space = config, space
        self.workdir = pathlib.Path(workdir)
        self.objective = objective
        self.patience = patience
        self.direction = "min" if objective.endswith("loss") else "max"
        shared = {
            "objective": keras_tuner.Objective(objective, self.direction),
            # Zero would have keras-tuner draw a seed.
            "seed": seed + 1,
            # A space in which much diverges is no reason to stop.
            "max_consecutive_failed_trials": 10**6,
        }
        if algorithm == "random":
            oracle = keras_tuner.oracles.RandomSearchOracle(max_trials=trials, **shared)
        elif algorithm == "bayesian":
            oracle = keras_tuner.oracles.BayesianOptimizationOracle(
                max_trials=trials, **shared
            )
        else:
            oracle = keras_tuner.oracles.HyperbandOracle(
                max_epochs=config.epochs // config.log_every, **shared
            )
        self.tuner = _Tuner(self, oracle)

    def run(self):
        """Runs, or goes on with, the search.

        Under keras-tuner's distributed mode, which its environment variables turn on,
        the chief hands out trials and the workers run them.
        """
        self.tuner.search()

    def table(self):
        """What came of each trial.

        Returns:
            `pandas.DataFrame`, the best first: `trial`, `status` ("finished",
            "diverged", "failed" or "running"), the objective (its best log line),
            `epochs`, and a column for each field.
        """
        import pandas as pd

        rows = []
        for trial in self.tuner.oracle.trials.values():
            summary = results.read_summary(self._folder(trial.trial_id))
            status = summary["status"] if summary else "running"
            if summary is None and trial.status in ("FAILED", "INVALID"):
                status = "failed"
            values = trial.hyperparameters.values
            rows.append(
                {
                    "trial": trial.trial_id,
                    "status": status,
                    self.objective: trial.score if status == "finished" else math.nan,
                    "epochs": summary["epochs"] if summary else None,
                    **{field: values.get(field) for field in self.space},
                }
            )
        table = pd.DataFrame(
            rows, columns=["trial", "status", self.objective, "epochs", *self.space]
        )
        ascending = self.direction == "min"
        return table.sort_values(self.objective, ascending=ascending, kind="stable")

    def best(self):
        """The configuration of the best trial.

        Raises:
            ValueError: If no trial has finished.
        """
        found = self.tuner.oracle.get_best_trials(1)
        if not found:
            raise ValueError("No trial of this search has finished.")
        return configure(self.config, self.space, found[0].hyperparameters.copy())

    def write_hparams(self, folder):
        """Writes all trials for TensorBoard's HParams page.

        Args:
            folder: What `tensorboard --logdir` is to be given.
        """
        import tensorflow as tf
        from tensorboard.plugins.hparams import api

        for row in self.table().to_dict("records"):
            values = {field: row[field] for field in self.space}
            with tf.summary.create_file_writer(f"{folder}/{row['trial']}").as_default():
                api.hparams(values, trial_id=row["trial"])
                if math.isfinite(row[self.objective]):
                    tf.summary.scalar(self.objective, row[self.objective], step=0)

    def _folder(self, trial_id):
        return self.workdir / "trials" / trial_id

    def run_trial(self, trial):
        """Runs one trial; returns the best value of its objective."""
        parameters = trial.hyperparameters
        config = configure(self.config, self.space, parameters)
        if "tuner/epochs" in parameters.values:
            config.epochs = parameters.values["tuner/epochs"] * config.log_every
        extra = []
        if self.patience is not None:
            extra.append(
                StopEarly(self.objective, patience=self.patience, mode=self.direction)
            )
        folder = self._folder(trial.trial_id)
        summary = experiment.run(config, folder, extra_callbacks=extra)
        if summary["status"] == "diverged":
            raise keras_tuner.errors.FailedTrialError(
                "The loss became NaN or infinite."
            )
        lines = results.read_metrics(folder)
        readings = [line[self.objective] for line in lines if self.objective in line]
        if not readings:
            raise keras_tuner.errors.FatalValueError(
                f"The runs do not log the objective {self.objective!r}. They log "
                f"{', '.join(lines[-1])}."
            )
        best = np.min if self.direction == "min" else np.max
        return float(best(np.asarray(readings, float)))


class _Tuner(keras_tuner.engine.base_tuner.BaseTuner):
    """Keras-tuner's loop around `Search.run_trial`."""

    def __init__(self, search, oracle):
        self._search = search
        parameters = oracle.get_space()
        configure(search.config, search.space, parameters)
        oracle.update_space(parameters)
        super().__init__(oracle, directory=str(search.workdir), project_name="tuner")

    def run_trial(self, trial):
        return {self._search.objective: self._search.run_trial(trial)}
