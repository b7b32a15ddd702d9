"""Hyperparameter search with keras-tuner over the fields of a configuration.

A trial of `Search` is a run folder, so that it shows, stops and resumes like any run.
Whoever has a tuner of their own takes `hypermodel`.
"""

import _thread
import contextlib
import difflib
import json
import math
import numbers
import os
import pathlib
import shutil
import signal
import socket
import statistics
import threading
import time
import traceback
import warnings

import keras
import keras_tuner
import ml_collections

from keras_fa import datasets, distribution
from keras_fa.lab import attempts, plans, run_folder
from keras_fa.lab import config as configuration
from keras_fa.lab.build import build, load, measures_of, rule_of
from keras_fa.lab.progress import duration
from keras_fa.lab.run import run
from keras_fa.registry import did_you_mean

ALGORITHMS = ("random", "hyperband", "bayesian")

_FLOAT, _CHOICES, _WHEN = {"min", "max", "log"}, {"choices"}, "when"


def check_space(config, space):
    """Refuses a search space that could not be searched, before anything is run.

    Args:
        config: The configuration that the search changes.
        space: `{field: {"min": number, "max": number, "log": bool}}` for a number, the
            field's type deciding whether it is whole, or `{field: {"choices": list}}`.
            With `"when": {"rule": ["sign_fa"]}` a field is searched where one before it
            has one of these values, and stays as it is elsewhere: what belongs to some
            rules only, "rule.scale" say.

    Raises:
        ValueError: If a field is unknown, its range is none, or it cannot take a value
            of it.
    """
    if not space:
        raise ValueError("The search space is empty: name at least one field.")
    config = ml_collections.ConfigDict(config)
    known = run_folder.flatten(config.to_dict())
    before = {}
    for field, given in space.items():
        if field not in known and not plans.is_argument(field):
            close = difflib.get_close_matches(field, list(known), n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"The search space has an unknown field {field!r}.{hint}")
        _check_when(field, given.get(_WHEN, {}), before)
        before[field] = values = {k: v for k, v in given.items() if k != _WHEN}
        bases = _where(config, given.get(_WHEN, {}))
        if values.keys() == _CHOICES and values["choices"]:
            _try(bases, field, values["choices"])
            continue
        if not {"min", "max"} <= values.keys() <= _FLOAT:
            raise ValueError(
                f'The range of {field!r} must be {{"choices": [...]}} or {{"min": a, '
                f'"max": b}}, with "log": True for a logarithmic one. Received: '
                f"{values}."
            )
        low, high = values["min"], values["max"]
        if not all(isinstance(v, numbers.Real) for v in (low, high)):
            raise ValueError(
                f"The range of {field!r} must be of numbers. Received: {values}."
            )
        whole = all(isinstance(v, int) and not isinstance(v, bool) for v in (low, high))
        kind = plans.kind_of(config, field)
        if field not in known and not whole:
            kind = float
        if kind is not float and not (whole and kind in (int, None)):
            raise ValueError(
                f"{field!r} cannot be drawn from a range: it is {known.get(field)!r} "
                'in the configuration. Name its values: {"choices": [...]}. Received: '
                f"{values}."
            )
        if not -math.inf < low < math.inf or not -math.inf < high < math.inf:
            raise ValueError(
                f"The range of {field!r} must be finite. Received: {values}."
            )
        if not low < high or (values.get("log") and low <= 0):
            raise ValueError(
                f"The range of {field!r} needs min < max, and min > 0 if it is "
                f"logarithmic. Received: {values}."
            )
        # The upper end of what is not whole is not drawn.
        _try(bases, field, [low, (low + high) / 2 if kind is float else high])


def _check_when(field, when, before):
    """Refuses a condition on what is not chosen before the field."""
    for other, wanted in when.items():
        choices = before.get(other, {}).get("choices")
        if choices is None:
            raise ValueError(
                f"The field {field!r} hangs on {other!r}, which must stand before it "
                f'in the search space with its values: {{"choices": [...]}}. Received: '
                f"{_WHEN}={when!r}."
            )
        unknown = [value for value in wanted if value not in choices]
        if unknown or not wanted:
            raise ValueError(
                f"The field {field!r} hangs on values of {other!r} that are not "
                f"searched: {unknown}. Known: {choices}."
            )


def _where(config, when):
    """Configurations in which a condition holds, a list."""
    found = [config]
    for field, wanted in when.items():
        found = [
            plans.changed(base, {field: value}) for base in found for value in wanted
        ]
    return found


def _try(bases, field, values):
    """Refuses values that a field cannot take."""
    for base in bases:
        for value in values:
            changed = plans.changed(base, {field: value})
            configuration.check(changed)
            rule_of(changed)


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
    config = ml_collections.ConfigDict(config)
    changed = config.copy_and_resolve_references()
    chosen = {}
    for field, values in space.items():
        when = values.get(_WHEN, {})
        # Of what is None now, a resolved copy does not know the kind any more.
        kind = plans.kind_of(config, field)
        with contextlib.ExitStack() as conditions:
            for other, wanted in when.items():
                conditions.enter_context(
                    parameters.conditional_scope(other, [str(v) for v in wanted])
                )
            value = _declare(parameters, field, values, kind)
        if all(chosen.get(other, _NOTHING) in wanted for other, wanted in when.items()):
            chosen[field] = value
            plans.set_field(changed, field, value)
    return changed


# No value of a field.
_NOTHING = object()


def _declare(parameters, field, values, kind):
    """A value that a tuner chooses; `kind` is what the field takes."""
    if "choices" in values:
        # keras-tuner's choices are numbers, strings and booleans; None is none of them.
        names = [str(choice) for choice in values["choices"]]
        chosen = parameters.Choice(field, names)
        # None where the condition of the field does not hold.
        return None if chosen is None else values["choices"][names.index(chosen)]
    low, high = values["min"], values["max"]
    sampling = "log" if values.get("log") else "linear"
    if isinstance(low, int) and isinstance(high, int) and kind is not float:
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
        return build(config, load(config))

    def fit(self, hp, model, *args, **kwargs):
        if not args and "x" not in kwargs:
            config = configure(self._config, self._space, hp)
            dataset = load(config)
            kwargs.setdefault("validation_data", dataset.test)
            kwargs.setdefault("epochs", config.epochs)
            kwargs.setdefault("verbose", 0)
            kwargs.setdefault("shuffle", False)
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


def read_role():
    """What this process is in keras-tuner's distributed mode.

    Under an `srun` of several tasks, the first is the chief, and the environment
    variables that turn the mode on are set here.

    Returns:
        "chief" or "worker", or "alone" outside that mode.

    Raises:
        ValueError: If the mode's environment variables are half filled in.
    """
    names = [f"KERASTUNER_{n}" for n in ("ORACLE_IP", "ORACLE_PORT", "TUNER_ID")]
    missing = [name for name in names if name not in os.environ]
    if len(missing) == len(names) and (tasks := distribution.slurm_tasks()):
        rank = os.environ["SLURM_PROCID"]
        given = (*tasks[0].rsplit(":", 1), "chief" if rank == "0" else f"worker{rank}")
        os.environ |= dict(zip(names, given, strict=True))
        missing = []
    if len(missing) == len(names):
        return "alone"
    if missing:
        raise ValueError(
            f"keras-tuner's distributed mode needs {', '.join(names)}. Missing: "
            f"{', '.join(missing)}. Set them all, or unset the others."
        )
    # As keras-tuner tells them apart.
    return "chief" if "chief" in os.environ["KERASTUNER_TUNER_ID"] else "worker"


class Search:
    """A search whose trials are run folders.

    A search that was stopped goes on when it is made and run again with the same
    arguments; `trials` alone may be greater then. What is done is read from the trials
    alone: keras-tuner is asked the same questions again and given the same answers, and
    the files in which it keeps its state are not read. Under Hyperband a trial of a
    later round is trained anew, for as many epochs as its round has: nothing hangs on
    the weights of another trial.

    Args:
        config: `ConfigDict` of the runs.
        space: The fields to tune: as for `check_space`.
        workdir: Folder of the search: trials in `trials/`, what is searched in
            `search.json`, what keras-tuner writes in `tuner/`.
        algorithm: "random", "hyperband" or "bayesian".
        trials: How many trials; Hyperband has as many as its rounds need.
        objective: Key of the log lines, `val_accuracy` or `val_loss` say, whose last
            value is a trial's score: settings whose accuracy breaks down after a good
            epoch are no good settings. The greater the better, unless the key ends in
            "loss".
        seed: Seed of the search.
        patience: Log lines without a better objective after which a trial is ended;
            None for never.

    Raises:
        ValueError: If one of these is wrong.
        keras_fa.results.RunFolderError: If the folder belongs to another search, or a
            trial in it is damaged or none of this search's.
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
        role = read_role()
        if algorithm not in ALGORITHMS:
            raise ValueError(
                f"Unknown algorithm: {algorithm!r}. Known: {', '.join(ALGORITHMS)}."
            )
        self.config, self.space = config, space
        self.workdir = pathlib.Path(workdir)
        self.objective = objective
        self.patience = patience
        self.direction = "min" if objective.endswith("loss") else "max"
        self._rounds = None
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
            lines = config.epochs // config.log_every
            oracle = keras_tuner.oracles.HyperbandOracle(max_epochs=lines, **shared)
            self._rounds = _hyperband_rounds(lines)
            trials = len(self._rounds)
        self.trials = trials
        # keras-tuner's own display knows no time left.
        oracle.verbose = 0
        self._claim(algorithm, seed)
        self._console = None
        # On a worker of keras-tuner's distributed mode `_tuner.oracle` asks the chief.
        self._oracle = oracle
        self._tuner = _Tuner(self, oracle, overwrite=role != "worker")
        if role != "worker":
            self._replay()

    def _replay(self):
        """Has the oracle go through the trials that were begun, in their order."""
        run_folder.tidy(self.workdir)
        folders = self.workdir / "trials"
        # Run folders, and records of failures.
        found = [*folders.glob("[0-9]*"), *folders.glob(f"{attempts.HOME}/[0-9]*")]
        begun = [name.split(".") for name in sorted({path.name for path in found})]
        begun = [(int(name), name, rest) for name, *rest in begun if name.isdigit()]
        unfinished = []
        for number in range(1 + max((number for number, *_ in begun), default=-1)):
            asks = f"replay {number}"
            with _quiet():
                trial = self._oracle.create_trial(asks)
            self._oracle.tuner_ids.discard(asks)
            if trial.status != "RUNNING":
                break
            for other, name, rest in begun:
                # Where there were fewer trials, their names were shorter.
                if other == number and name != trial.trial_id:
                    old, new = (".".join([n, *rest]) for n in (name, trial.trial_id))
                    for folder in (folders, folders / attempts.HOME):
                        with contextlib.suppress(FileNotFoundError):
                            (folder / old).rename(folder / new)
            if self._is_over(trial):
                with _quiet():
                    self._tuner.go_through(trial)
            else:
                unfinished.append(asks)
        ask, ongoing = self._oracle.create_trial, self._oracle.ongoing_trials

        def create_trial(tuner_id):
            if unfinished and tuner_id not in ongoing:
                ongoing[tuner_id] = ongoing.pop(unfinished.pop(0))
            return ask(tuner_id)

        self._oracle.create_trial = create_trial

    def _is_over(self, trial):
        folder = self._folder(trial.trial_id)
        config = self._config_of(trial)
        return (
            run_folder.read_summary(folder) is not None
            or self._failure(trial, config) is not None
        )

    def _config_of(self, trial):
        """The configuration of a trial, and that in its folder if it was begun.

        Where several workers shared a search, what a trial was given hung on which of
        the others were over by then. What it was given then is what it has now.
        """
        config = self._configured(trial)
        folder = self._folder(trial.trial_id)
        if not (run_folder.place(folder) / run_folder.CONFIG).exists():
            return config
        try:
            run_folder.check(folder, config.to_dict())
        except run_folder.RunFolderError:
            stored = run_folder.flatten(run_folder.read_config(folder))
            values = trial.hyperparameters.values
            for field, given in self.space.items():
                found = stored.get(field)
                for choice in given.get("choices", ()):
                    if json.loads(run_folder.to_json(choice)) == found:
                        found = str(choice)
                if found is not None or field in values:
                    values[field] = found
            # What is no choice of the space is refused as what it is.
            with contextlib.suppress(ValueError):
                config = self._configured(trial)
            run_folder.check(folder, config.to_dict())
        return config

    def _configured(self, trial):
        parameters = trial.hyperparameters
        config = configure(self.config, self.space, parameters)
        if "tuner/epochs" in parameters.values:
            config.epochs = parameters.values["tuner/epochs"] * config.log_every
        return config

    def _failure(self, trial, config):
        """What was recorded of a failed trial, or None."""
        path = self._failure_path(trial)
        if not path.exists():
            return None
        again = "Remove it and give the same command: the trial is run again."
        found = run_folder.read_json(path, again)
        same = found.get("config") == run_folder.identity(config.to_dict())
        return found if same else None

    def _failure_path(self, trial):
        return self.workdir / "trials" / f"{trial.trial_id}.failed.json"

    def _claim(self, algorithm, seed):
        """Refuses a folder of another search, before it is touched."""
        given = {
            "config": self.config.to_dict(),
            "space": self.space,
            "algorithm": algorithm,
            "objective": self.objective,
            "seed": seed,
            "patience": self.patience,
            ".backend": run_folder.backend(),
        }
        given = json.loads(run_folder.to_json(given))
        path = self.workdir / "search.json"
        if path.exists():
            stored = run_folder.read_json(
                path,
                f"Put back a copy of it, or remove {self.workdir} to begin the search "
                "anew.",
            )
            found = run_folder.differences(
                stored.pop("config", {}), given.pop("config"), "config."
            ) + run_folder.differences(stored, given)
            if found:
                raise run_folder.RunFolderError(
                    f"{self.workdir} belongs to another search:\n  "
                    + "\n  ".join(found[:10])
                    + "\nChoose another --workdir."
                )
            return
        self.workdir.mkdir(parents=True, exist_ok=True)
        if any(not p.name.startswith(".") for p in self.workdir.iterdir()):
            # Another process of the same search may have been faster.
            if path.exists():
                return self._claim(algorithm, seed)
            raise run_folder.RunFolderError(
                f"{self.workdir} is not empty and holds no search. Choose another "
                "--workdir."
            )
        run_folder.write_text(path, run_folder.to_json(given, indent=2) + "\n")

    def run(self, console=None):
        """Runs, or goes on with, the search.

        Under keras-tuner's distributed mode, which its environment variables turn on,
        the chief hands out trials and the workers run them.

        Args:
            console: `rich.console.Console` to show the progress on; None for silence.

        Raises:
            keras_fa.results.RunFolderError, keras_fa.datasets.DatasetNotFound, OSError:
                Whatever would fail every trial. What fails one trial, a loss that is no
                number above all, is recorded and does not stop the search.
            ValueError: If the runs do not log the objective.
            RuntimeError: On a worker, if the chief has gone.
        """
        self._console = console
        self._check_objective()
        role, over = read_role(), threading.Event()
        gone = threading.Event()
        if role == "worker":
            watch = threading.Thread(target=_watch_chief, args=(over, gone))
        else:
            watch = threading.Thread(target=self._watch_trials, args=(over,))
        watch.daemon = True
        if role != "alone":
            watch.start()
        try:
            with _quiet(), _interruptible():
                self._tuner.search()
        except keras_tuner.errors.FatalError as error:
            raise (error.__cause__ or error) from None
        except BaseException as error:
            is_of_the_wire = type(error).__module__.partition(".")[0] == "grpc"
            if role == "worker" and (gone.is_set() or is_of_the_wire):
                raise RuntimeError(
                    "The chief of the search cannot be reached any more. Start it and "
                    "the workers again: trials go on after their last checkpoints."
                ) from error
            raise
        finally:
            over.set()

    def _watch_trials(self, over):
        """Says on the chief which trials nobody seems to be at."""
        said = {}
        while not over.wait(_LOOK):
            for trial in list(self._oracle.ongoing_trials.values()):
                folder = run_folder.place(self._folder(trial.trial_id))
                path = folder / run_folder.METRICS
                with contextlib.suppress(OSError):
                    still = time.time() - path.stat().st_mtime
                    often = int(still / _SILENCE)
                    if often > said.get(trial.trial_id, 0) and self._console:
                        self._console.print(
                            f"Trial {trial.trial_id} has logged nothing for "
                            f"{duration(still)}. If its worker has ended, start it "
                            "again with the same KERASTUNER_TUNER_ID."
                        )
                    said[trial.trial_id] = often

    def _check_objective(self):
        """Refuses an objective that only an instrument could log and none does."""
        on = self.config.instruments
        others = (on.others, on.gradient_alignment, on.error_alignment, on.minimum_norm)
        # What instruments log hangs on the network, and what a loss does on the loss.
        if any(others) or "/" in self.objective or "loss" in self.space:
            return
        measures = ["loss", *measures_of(self.config)]
        known = [*measures, *(f"val_{measure}" for measure in measures)]
        known += ["learning_rate", "flow_time", "seconds"]
        if self.objective not in known:
            self._refuse_objective(known)

    def _refuse_objective(self, known):
        raise keras_tuner.errors.FatalValueError(
            f"The runs do not log the objective {self.objective!r}."
            f"{did_you_mean(self.objective, known)} They log {', '.join(known)}."
        )

    def table(self):
        """What came of each trial.

        Returns:
            `pandas.DataFrame`, the best first: `trial`, `status` ("finished",
            "diverged", "failed" or "running"), the objective, `epochs`, and a column
            for each field.
        """
        import pandas as pd

        rows = []
        for trial in self._oracle.trials.values():
            summary = self._summary(trial.trial_id)
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

    def failures(self):
        """`{trial: message}` of the trials that failed otherwise than by diverging."""
        return {
            trial.trial_id: trial.message
            for trial in self._oracle.trials.values()
            if trial.message
            and run_folder.read_summary(self._folder(trial.trial_id)) is None
        }

    def best(self):
        """The configuration of the best trial.

        Raises:
            ValueError: If no trial has finished.
        """
        # keras-tuner fills up with trials that are not finished.
        found = self._oracle.get_best_trials(1)
        if not found or found[0].status != "COMPLETED":
            raise ValueError("No trial of this search has finished.")
        return configure(self.config, self.space, found[0].hyperparameters.copy())

    def write_hparams(self, folder):
        """Writes all trials for TensorBoard's HParams page.

        Args:
            folder: What `tensorboard --logdir` is to be given; what was there before
                goes.
        """
        import pandas as pd
        import tensorflow as tf
        from tensorboard.plugins.hparams import api

        shutil.rmtree(folder, ignore_errors=True)
        for row in self.table().to_dict("records"):
            values = {field: row[field] for field in self.space}
            values = {k: v for k, v in values.items() if not pd.isna(v)}
            with tf.summary.create_file_writer(f"{folder}/{row['trial']}").as_default():
                api.hparams(values, trial_id=row["trial"])
                if math.isfinite(row[self.objective]):
                    tf.summary.scalar(self.objective, row[self.objective], step=0)

    def _folder(self, trial_id):
        return self.workdir / "trials" / trial_id

    def _summary(self, trial_id):
        return run_folder.read_summary(self._folder(trial_id))

    def run_trial(self, trial):
        """Runs one trial; returns its objective, or NaN if it diverged."""
        config = self._config_of(trial)
        failure = self._failure(trial, config)
        if failure is not None:
            raise keras_tuner.errors.FailedTrialError(failure["error"])
        extra = []
        if self.patience is not None:
            extra.append(
                StopEarly(self.objective, patience=self.patience, mode=self.direction)
            )
        self._show(trial)
        folder = self._folder(trial.trial_id)
        shows = self._console is not None
        try:
            summary = run(config, folder, progress=shows, extra_callbacks=extra)
        except _STOPPING:
            raise
        except Exception as error:
            found = {
                "config": run_folder.identity(config.to_dict()),
                "error": f"{type(error).__name__}: {error}",
                "traceback": traceback.format_exc(),
            }
            path = self._failure_path(trial)
            path.parent.mkdir(parents=True, exist_ok=True)
            run_folder.write_text(path, run_folder.to_json(found, indent=2) + "\n")
            raise
        if summary["status"] == "diverged":
            # Which makes keras-tuner count the trial as failed.
            return math.nan
        last = run_folder.read_metrics(folder)[-1]
        if self.objective not in last:
            self._refuse_objective(last)
        return last[self.objective]

    def _show(self, trial):
        """A line for a trial that begins: its settings, and the time left of all."""
        if self._console is None:
            return
        folders = sorted((self.workdir / "trials").glob("[0-9]*"))
        over = [s for s in map(run_folder.read_summary, folders) if s is not None]
        left = ""
        if over:
            seconds = sum(s["seconds"] for s in over) / sum(s["epochs"] for s in over)
            if self._rounds is None:
                epochs = statistics.mean(s["epochs"] for s in over)
                epochs *= self.trials - len(over)
            else:
                epochs = sum(self._rounds[len(over) :]) * self.config.log_every
            left = f", about {duration(seconds * epochs)} of computing left"
        values = trial.hyperparameters.values
        settings = ", ".join(
            f"{field.rsplit('.', 1)[-1]}={short(values[field])}"
            for field in self.space
            if field in values
        )
        self._console.print(
            f"trial {trial.trial_id} ({len(over)} of {self.trials} over{left}): "
            f"{settings}",
            highlight=False,
        )


# Seconds between two looks at the other processes of a search, and until what is not
# heard of them is said.
_LOOK, _SILENCE = 5, 30


def _watch_chief(over, gone):
    """Interrupts a worker of a distributed search when its chief has gone."""
    address = tuple(os.environ[f"KERASTUNER_ORACLE_{n}"] for n in ("IP", "PORT"))
    heard = None
    while not over.wait(_LOOK):
        try:
            socket.create_connection(address, timeout=_LOOK).close()
            heard = time.monotonic()
        except OSError:
            if heard is not None and time.monotonic() - heard > _SILENCE:
                gone.set()
                _thread.interrupt_main(_INTERRUPT)
                return


# Not SIGINT, which a process that a shell has put into the background ignores.
_INTERRUPT = signal.SIGUSR1


@contextlib.contextmanager
def _interruptible():
    """Within, `_watch_chief` can interrupt the main thread, which alone hears it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(_INTERRUPT, interrupt)
    try:
        yield
    finally:
        # None was set by another language and cannot be set again.
        signal.signal(_INTERRUPT, before or signal.SIG_DFL)


@contextlib.contextmanager
def _quiet():
    """Without the warnings that say nothing of a search."""
    with warnings.catch_warnings():
        # Of keras-tuner, where a trial's only score is NaN.
        warnings.filterwarnings("ignore", "All-NaN axis", RuntimeWarning)
        # Of the Gaussian process that it fits to a handful of trials.
        warnings.filterwarnings("ignore", "lbfgs failed to converge")
        warnings.filterwarnings("ignore", "The optimal value found for")
        yield


def short(value):
    """A value for a table: a number to four digits, anything else as it is."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _hyperband_rounds(longest, factor=3):
    """How long Hyperband trains each of its trials, in the order of its rounds.

    Li et al. (2018), algorithm 1, with keras-tuner's numbers of trials.
    """
    rounds = []
    brackets = range(int(math.log(longest, factor) + 1e-9) + 1)
    for bracket in reversed(brackets):
        last = math.ceil(1 + math.log(longest, factor)) / (bracket + 1)
        for halvings in range(bracket, -1, -1):
            size = math.ceil(last * factor**halvings)
            rounds += size * [math.ceil(longest / factor**halvings)]
    return rounds


class _Tuner(keras_tuner.engine.base_tuner.BaseTuner):
    """Keras-tuner's loop around `Search.run_trial`."""

    def __init__(self, search, oracle, overwrite):
        self._search = search
        parameters = oracle.get_space()
        configure(search.config, search.space, parameters)
        oracle.update_space(parameters)
        super().__init__(
            oracle,
            directory=str(search.workdir),
            project_name="tuner",
            overwrite=overwrite,
        )

    def save(self):
        """Nothing: the tuner itself has no state."""

    def reload(self):
        """Nothing: what an earlier version saved may be damaged."""

    def go_through(self, trial):
        """Takes in a trial that is over already."""
        self._try_run_and_update_trial(trial)
        self.on_trial_end(trial)

    def run_trial(self, trial):
        try:
            return {self._search.objective: self._search.run_trial(trial)}
        except _STOPPING as error:
            # keras-tuner would go on and fail every other trial of the same cause.
            raise keras_tuner.errors.FatalError(str(error)) from error


_STOPPING = (run_folder.RunFolderError, datasets.DatasetNotFound, OSError)
