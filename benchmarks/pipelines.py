"""What a streamed set of images costs: memory, images a second, waiting.

Example:
    python -m benchmarks.pipelines --what=memory --folder=FOLDER
    python -m benchmarks.pipelines --what=rate --folder=FOLDER --images=1500
    python -m benchmarks.pipelines --what=hand_over --folder=FOLDER
    python -m benchmarks.pipelines --what=wait --folder=FOLDER

FOLDER holds a stand-in for ImageNet, random JPEGs of 300 to 500 pixels a side in class
folders, 20,000 for training, and is made if it is not there (1.7 GB).
"""

import argparse
import multiprocessing
import os
import pathlib
import resource
import tempfile
import time

_CHANGES = ("random_resized_crop", "flip")


def _resident():
    """Megabytes of memory that this process holds now."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def _processor_seconds(pid="self"):
    """CPU time of a process and of all that it has started."""
    ticks = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    children = pathlib.Path(f"/proc/{pid}/task").glob("*/children")
    children = [child for file in children for child in file.read_text().split()]
    own = sum(map(int, ticks[11:15])) / os.sysconf("SC_CLK_TCK")
    return own + sum(map(_processor_seconds, children))


def memory(folder, size, streamed, epochs=3):
    """Prints the resident memory over epochs of a set, read and thrown away."""
    from keras_fa import datasets

    before = _resident()
    data = datasets.load(
        f"folder:{folder}",
        image_size=size,
        batch_size=64,
        # Crops of whole images are streamed in any case.
        augment=_CHANGES if streamed else (),
        memory_bytes=0 if streamed else 2**40,
    )
    how = "streamed" if streamed else "in memory"
    print(f"{how}, {size} px: {before:.0f} MB before, {_resident():.0f} loaded")
    batches = iter(data.train_from(0))
    for epoch in range(epochs):
        seen = []
        for _ in range(data.steps_per_epoch):
            next(batches)
            seen.append(_resident())
        most, last = max(seen), seen[-1]
        print(f"  epoch {epoch + 1}: at most {most:.0f} MB, {last:.0f} at its end")


def rate(folder, images, threads, workers, size=224):
    """Prints the images a second that are decoded, cropped and mirrored."""
    from keras_fa import datasets

    data = datasets.load(
        f"folder:{folder}",
        image_size=size,
        batch_size=50,
        augment=_CHANGES,
        memory_bytes=0,
        threads=threads,
        workers=workers,
    )
    batches = iter(data.train_from(0))
    # Those that are made while processes start.
    for _ in range(8):
        next(batches)
    used, start = _processor_seconds(), time.perf_counter()
    for _ in range(images // 50):
        next(batches)
    seconds = time.perf_counter() - start
    used = (_processor_seconds() - used) / images
    print(
        f"{threads} threads, {workers} processes: {images / seconds:.0f} images a "
        f"second, {1e3 * used:.2f} ms of a core each"
    )


def hand_over(size, batch_size=64, count=50):
    """Prints what it takes to bring batches that are made from Python to TensorFlow."""
    import numpy as np
    import tensorflow as tf

    batch = np.ones((batch_size, size, size, 3), np.float32)
    batches = iter(
        tf.data.Dataset.from_generator(
            lambda: iter([batch] * (count + 3)),
            output_signature=tf.TensorSpec((None, *batch.shape[1:]), tf.float32),
        )
    )
    for _ in range(3):
        next(batches)
    used, start = _processor_seconds(), time.perf_counter()
    for _ in range(count):
        next(batches)
    images = batch_size * count
    used = (_processor_seconds() - used) / images
    print(
        f"{size} px: {images / (time.perf_counter() - start):.0f} images a second, "
        f"{1e3 * used:.2f} ms of a core each"
    )


def wait(folder, size, batch_size, steps):
    """Prints what part of a ResNet-18's training time its steps waited for data."""
    from keras_fa import experiment
    from keras_fa.lab import plans, run_folder

    config = plans.read_config("imagenet_resnet18")
    config.dataset.name, config.dataset.image_size = f"folder:{folder}", size
    config.dataset.workers, config.dataset.threads = 0, 2
    config.dataset.train_size = batch_size * steps
    config.dataset.standardize = "none"
    config.dtype = "float32"
    config.schedule.warmup = 0
    config.batch_size, config.epochs = batch_size, 2
    with tempfile.TemporaryDirectory() as workdir:
        summary = experiment.run(config, f"{workdir}/run")
        lines = run_folder.read_metrics(f"{workdir}/run")
    print(
        f"{size} px, batches of {batch_size}: {summary['seconds_per_step']:.2f} s a "
        f"step, waited {100 * lines[-1]['data_wait']:.2f}% of it"
    )


def main():
    """Measures what the flags say, each thing in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = ("memory", "rate", "hand_over", "wait")
    parser.add_argument("--what", choices=kinds, required=True)
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    parser.add_argument("--images", type=int, default=1500, help="Of a rate.")
    parser.add_argument("--rounds", type=int, default=3, help="Of a rate.")
    parser.add_argument("--steps", type=int, default=8, help="Of a ResNet-18.")
    parser.add_argument("--sizes", type=int, nargs="+", default=(64, 224))
    given = parser.parse_args()
    if given.what != "hand_over" and not given.folder.exists():
        from tests import image_sets

        image_sets.imagenet_like(given.folder, classes=100, train=200, test=4)
    if given.what == "memory":
        measured = [(memory, given.folder, size, True) for size in given.sizes]
        measured.append((memory, given.folder, min(given.sizes), False))
    elif given.what == "rate":
        cores = len(os.sched_getaffinity(0))
        ways = [(cores, 0), (1, cores), (1, 0)]
        images = given.folder, given.images
        measured = [(rate, *images, *way) for way in ways] * given.rounds
    elif given.what == "hand_over":
        measured = [(hand_over, size) for size in given.sizes]
    else:
        measured = [(wait, given.folder, size, 32, given.steps) for size in given.sizes]
    for function, *arguments in measured:
        target = multiprocessing.get_context("spawn").Process(
            target=function, args=arguments
        )
        target.start()
        target.join()
        if target.exitcode:
            raise SystemExit(target.exitcode)


if __name__ == "__main__":
    main()
