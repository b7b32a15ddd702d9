"""Where raw arrays come from: scikit-learn's digits, and TensorFlow Datasets."""

from __future__ import annotations

import contextlib
import functools
import http.client
import os
import re
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from keras_fa._extras import extra
from keras_fa.datasets import records
from keras_fa.datasets.transforms import RawData

TFDS_NAMES = ("mnist", "fashion_mnist", "cifar10", "cifar100", "tiny_imagenet")

# Which digits are for testing must never depend on the user's seed.
_DIGITS_SPLIT_SEED = 2024
_CONNECT_SECONDS = 10.0


class DatasetNotFound(FileNotFoundError):
    """A data set is neither prepared on this machine nor to be had by download."""


def read_digits() -> RawData:
    """The 1,797 handwritten 8x8 digits inside scikit-learn: 1,437 train, 360 test.

    The split is fixed, and stratified to within one example a class.

    Raises:
        ImportError: If scikit-learn is not installed.
    """
    with extra("data"):
        from sklearn.datasets import load_digits

    bunch = load_digits()
    x = bunch.images.astype(np.uint8)[..., np.newaxis]
    y = bunch.target.astype(np.int64)
    order = np.random.default_rng(_DIGITS_SPLIT_SEED).permutation(len(y))
    by_class = order[np.argsort(y[order], kind="stable")]
    test = np.zeros(len(y), bool)
    test[by_class[::5]] = True
    names = tuple(str(name) for name in bunch.target_names)
    return RawData(x[~test], y[~test], x[test], y[test], names, divisor=16.0)


def reader(name: str):
    """The function that reads one of the sets of this room."""

    def read(data_dir=None, manual_dir=None) -> RawData:
        if name == "digits":
            return read_digits()
        return read_tfds(name, data_dir, manual_dir)

    return read


def read_tfds(
    name: str,
    data_dir: str | os.PathLike | None = None,
    manual_dir: str | os.PathLike | None = None,
) -> RawData:
    """An image set of TensorFlow Datasets, prepared first if need be.

    Args:
        name: One of `TFDS_NAMES`.
        data_dir: The TFDS folder to read, and to prepare in. By default
            `TFDS_DATA_DIR` and then `~/tensorflow_datasets` are looked through, and
            what is in neither is prepared in the first that can be written.
        manual_dir: Folder with archives fetched by hand. By default
            `downloads/manual` in each of these folders.

    Returns:
        uint8 images and int64 labels. The arrays are read-only, and those of the last
        set read are kept for the next call.

    Raises:
        DatasetNotFound: If the set is not there and cannot be made.
        ValueError: If the archive in `manual_dir` is not the one the prepared set was
            made from.
        ImportError: If TensorFlow Datasets is not installed.
    """
    with extra("data"):
        import tensorflow_datasets  # noqa: F401 (before anything is looked for)
    folders = _data_dirs(data_dir)
    prepared = _find_prepared(name, folders)
    if prepared is None:
        prepared = _prepare(name, folders, manual_dir)
    elif name == "tiny_imagenet" and manual_dir is not None:
        _check_same_archive(prepared, Path(manual_dir))
    return _read_prepared(prepared)


def read_address(
    address: str,
    data_dir: str | os.PathLike | None = None,
    manual_dir: str | os.PathLike | None = None,
    memory_bytes: int = 0,
    image_size: int | None = None,
    channels: int | None = None,
) -> RawData:
    """Any set of TensorFlow Datasets with images and class labels, as it is encoded.

    Args:
        address: `NAME[/CONFIG][:VERSION]`.
        data_dir: As for `read_tfds`.
        manual_dir: As for `read_tfds`.
        memory_bytes: See `records.read_prepared`, as the last two.
        image_size: Side of the images.
        channels: 1 or 3.

    Raises:
        DatasetNotFound: If the set is not there and cannot be made.
        ValueError: If TFDS has no such set, or it is none of labelled images.
    """
    with extra("data"):
        import tensorflow_datasets as tfds
    folders = _data_dirs(data_dir)
    path = records.find(address, folders)
    if path is None:
        try:
            path = _prepare(address, folders, manual_dir)
        except tfds.core.registered.DatasetNotFoundError as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"TFDS has no set tfds:{address}: {reason}") from error
    name = f"tfds:{address}"
    return records.read_prepared(
        path, name, memory_bytes, folders, image_size, channels
    )


def _data_dirs(data_dir: str | os.PathLike | None) -> list[Path]:
    if data_dir is not None:
        return [Path(data_dir).expanduser()]
    # Read now, not when TFDS was imported, so that a program may set it.
    environment = os.environ.get("TFDS_DATA_DIR")
    folders = [environment] if environment else []
    return [Path(f).expanduser() for f in (*folders, "~/tensorflow_datasets")]


def _find_prepared(name: str, folders: list[Path]) -> Path | None:
    """The newest prepared version in the first folder that has one."""
    for folder in folders:
        versions = [
            path.parent
            for path in (folder / name).glob("*/dataset_info.json")
            if re.fullmatch(r"\d+\.\d+\.\d+", path.parent.name)
        ]
        if versions:
            return max(versions, key=lambda p: [int(v) for v in p.name.split(".")])
    return None


@functools.lru_cache(maxsize=1)
def _read_prepared(path: Path) -> RawData:
    try:
        return _read(path)
    except (ImportError, MemoryError):
        raise
    # What damaged records, pictures and descriptions raise is no fixed list.
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise DatasetNotFound(
            f"The data set prepared in {path} cannot be read, a file of it is damaged: "
            f"{reason[0]} Delete that folder: it is prepared anew, or put back a copy."
        ) from error


def _read(path: Path) -> RawData:
    import tensorflow_datasets as tfds

    # Without the builder's code, which may know another version than is prepared.
    builder = tfds.builder_from_directory(path)

    def split(name):
        arrays = builder.as_dataset(split=name, batch_size=-1, as_supervised=True)
        for array in (arrays := [tensor.numpy() for tensor in arrays]):
            array.flags.writeable = False
        return arrays

    test = "test" if "test" in builder.info.splits else "validation"
    names = builder.info.features["label"].names
    if builder.info.metadata and "words" in builder.info.metadata:
        names = builder.info.metadata["words"]
    return RawData(*split("train"), *split(test), tuple(names), divisor=255.0)


def _prepare(
    name: str, folders: list[Path], manual_dir: str | os.PathLike | None
) -> Path:
    import tensorflow_datasets as tfds

    target = next((folder for folder in folders if _is_writable(folder)), None)
    if target is None:
        raise _not_found(name, folders, "and it cannot be prepared: no write access")
    if name == "tiny_imagenet":
        from keras_fa.datasets import tiny_imagenet

        builder = tiny_imagenet.TinyImagenet(data_dir=os.fspath(target))
        wanted = {tiny_imagenet.ARCHIVE: tiny_imagenet.URL}
        manual_dir = _find_manual(wanted, folders, manual_dir)
    else:
        builder = tfds.builder(name, data_dir=os.fspath(target))
        wanted = {info.filename: url for url, info in builder.url_infos.items()}
    manual = Path(manual_dir).expanduser() if manual_dir else _manual_dir(target)
    unreachable = _unreachable(wanted, builder.url_infos, target, manual)
    if unreachable:
        raise _not_found(name, folders, f"and it cannot be downloaded: {unreachable}")
    config = tfds.download.DownloadConfig(manual_dir=os.fspath(manual))
    try:
        with _quiet_tfds():
            builder.download_and_prepare(download_config=config)
    except Exception as error:
        # Another process may have prepared the same set in the meantime.
        if records.find(name, [target]) is None:
            reason = f"and preparing it in {target} failed: {error}"
            raise _not_found(name, folders, reason) from error
    return records.find(name, [target])


def _is_writable(folder: Path) -> bool:
    """Whether files may be made there; the folder itself need not exist yet.

    A folder whose mode lets nobody write is left alone even by root.
    """
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return os.access(folder, os.W_OK) and bool(folder.stat().st_mode & 0o222)


def _manual_dir(folder: Path) -> Path:
    return folder / "downloads" / "manual"


def _find_manual(
    wanted: dict[str, str], folders: list[Path], manual_dir: str | os.PathLike | None
) -> Path | None:
    """The folder that has the archives, so that one may be read-only, one prepared in.

    Raises:
        DatasetNotFound: If the user named a folder and they are not in it.
    """
    if manual_dir is not None:
        searched = [Path(manual_dir).expanduser()]
    else:
        every = dict.fromkeys([*folders, *_data_dirs(None)])
        searched = [_manual_dir(folder) for folder in every]
    for folder in searched:
        if all((folder / archive).exists() for archive in wanted):
            return folder
    if manual_dir is not None:
        raise DatasetNotFound(f"There is no {' or '.join(wanted)} in {searched[0]}.")
    return None


def _check_same_archive(prepared: Path, manual_dir: Path) -> None:
    import tensorflow_datasets as tfds

    from keras_fa.datasets import tiny_imagenet

    archive = manual_dir.expanduser() / tiny_imagenet.ARCHIVE
    metadata = tfds.builder_from_directory(prepared).info.metadata
    if archive.exists() and archive.stat().st_size != metadata["archive_bytes"]:
        raise ValueError(
            f"{prepared} was prepared from another archive than {archive}. Give "
            "another `data_dir`, or delete the prepared folder."
        )


def _unreachable(
    wanted: dict[str, str], url_infos: dict | None, target: Path, manual: Path
) -> str | None:
    """Why what is still missing cannot be downloaded, or None.

    TFDS itself tries each address ten times, for minutes, before it gives up.
    """
    from tensorflow_datasets.core.download import resource

    downloads = target / "downloads"
    hosts = {}
    for filename, url in wanted.items():
        info = (url_infos or {}).get(url)
        cached = resource.get_dl_fname(url, info.checksum if info else None)
        here = [manual / filename, downloads / cached, *downloads.glob(f"*/{cached}")]
        if not any(path.exists() for path in here):
            hosts[urllib.parse.urlsplit(url).netloc] = url
    for host, url in hosts.items():
        request = urllib.request.Request(url, method="HEAD")
        try:
            urllib.request.urlopen(request, timeout=_CONNECT_SECONDS).close()
        except urllib.error.HTTPError as error:
            if error.code >= 500:
                return f"{host} answers {error.code} {error.reason}"
        except (OSError, http.client.HTTPException) as error:
            return f"{host} cannot be reached ({getattr(error, 'reason', error)})"
    return None


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[None]:
    """Keeps TFDS off standard output, and its progress bars out of log files."""
    import tensorflow_datasets as tfds

    bars = sys.stderr.isatty()
    if not bars:
        tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        if not bars:
            tfds.enable_progress_bar()


def _not_found(name: str, folders: list[Path], reason: str) -> DatasetNotFound:
    return DatasetNotFound(
        f"The data set {name!r} is not prepared in "
        f"{' or '.join(str(folder) for folder in folders)}, {reason}. "
        "Set the environment variable TFDS_DATA_DIR (or `data_dir`) to a TensorFlow "
        "Datasets folder that has it, or to one that can be written on a machine with "
        "network access. The embedded data set 'digits' works everywhere."
    )
