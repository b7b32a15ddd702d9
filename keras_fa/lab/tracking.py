"""Sends a run's configuration and log lines to a tracking library too.

The run folder stays the truth: what is sent is never read back. A run that goes on
after an interruption sends the lines after its last checkpoint once more.
"""

import numbers
import pathlib

import keras

from keras_fa._extras import extra
from keras_fa.lab import run_folder

NAMES = ("tensorboard", "mlflow", "wandb", "trackio")


class Tracker(keras.callbacks.Callback):
    """Sends each log line of a run to a library.

    Args:
        library: One of `NAMES`. Its own environment variables say where to
            (`MLFLOW_TRACKING_URI`, `WANDB_MODE`, `TRACKIO_DIR`); TensorBoard's files
            are beside the run folder, in `tensorboard/`.
        config: The run's configuration, a `ConfigDict`.
        workdir: The run folder, whose name is the run's there.

    Raises:
        ValueError: If the library is unknown.
        ImportError: If it is not installed.
    """

    def __init__(self, library, config, workdir):
        super().__init__()
        if library not in NAMES:
            raise ValueError(
                f"Unknown tracker: {library!r}. Known: {', '.join(NAMES)}."
            )
        workdir = pathlib.Path(workdir).absolute()
        self._log_every = config.log_every
        settings = run_folder.flatten(config.to_dict())
        with extra("track"):
            self._log, self._end = _OPEN[library](workdir, settings)

    def on_epoch_end(self, epoch, logs=None):
        values = {k: v for k, v in (logs or {}).items() if isinstance(v, numbers.Real)}
        self._log(values, (epoch + 1) * self._log_every)

    def stop(self):
        """Ends the run there, however it ended here."""
        self._end()


def write_events(runs, logdir):
    """Writes TensorBoard's event files from the logs of runs that are over.

    Args:
        runs: A run folder, or a folder with any number of them below it.
        logdir: What `tensorboard --logdir` is to be given. Each run has a folder there,
            at its path below `runs`, whose event files of before go.

    Returns:
        The list of the runs' folders.

    Raises:
        ValueError: If there is no finished run.
        keras_fa.results.RunFolderError: If one is damaged.
    """
    runs, logdir = pathlib.Path(runs), pathlib.Path(logdir)
    found = list(run_folder.finished_runs(runs))
    if not found:
        raise ValueError(
            f"There is no finished run in {runs}. Expected a run folder, or a folder "
            "with run folders below it."
        )
    for folder in found:
        settings = run_folder.flatten(run_folder.read_config(folder))
        lines = run_folder.read_metrics(folder)
        target = logdir / (folder.relative_to(runs) if folder != runs else folder.name)
        for old in target.glob("events.out.tfevents.*"):
            old.unlink()
        log, close = _events(target, settings)
        for line in lines:
            values = {k: v for k, v in line.items() if isinstance(v, numbers.Real)}
            log(values, line["epoch"])
        close()
    return found


def _tensorboard(workdir, settings):
    return _events(workdir.parent / "tensorboard" / workdir.name, settings)


def _events(folder, settings):
    import tensorflow as tf

    writer = tf.summary.create_file_writer(str(folder))
    with writer.as_default():
        lines = [f"    {field}: {value!r}" for field, value in settings.items()]
        tf.summary.text("config", "\n".join(lines), step=0)

    def log(values, epoch):
        with writer.as_default():
            for name, value in values.items():
                tf.summary.scalar(name, float(value), step=epoch)

    return log, writer.close


def _mlflow(workdir, settings):
    import mlflow

    mlflow.set_experiment("keras_fa")
    mlflow.start_run(run_name=workdir.name)
    mlflow.log_params(settings)

    def log(values, epoch):
        mlflow.log_metrics({k: float(v) for k, v in values.items()}, step=epoch)

    return log, mlflow.end_run


def _wandb(workdir, settings):
    import wandb

    run = wandb.init(project="keras_fa", name=workdir.name, config=settings)
    return lambda values, epoch: run.log(values, step=epoch), run.finish


def _trackio(workdir, settings):
    import trackio

    trackio.init(project="keras_fa", name=workdir.name, config=settings)
    return lambda values, epoch: trackio.log(values, step=epoch), trackio.finish


_OPEN = {
    "tensorboard": _tensorboard,
    "mlflow": _mlflow,
    "wandb": _wandb,
    "trackio": _trackio,
}
