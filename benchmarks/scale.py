r"""What a sweep of many copies asks of a file system, counted by strace.

Example:
    python benchmarks/scale.py --copies=64 --cells=640

Light copies, which import no TensorFlow, claim cells that take no time: each begins its
run folder, logs a line, and ends. Prints file operations a cell, the time to the first
claim, and how many cells were computed twice. The extrapolation to 10,000 cells and
1,000 copies is reckoned from these.
"""

import argparse
import collections
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

_COPY = """
import os, pathlib, sys, time
from rich.console import Console
from keras_fa import sweeps
from keras_fa.config import default_config
from keras_fa.lab import pool, run_folder


class Worker:
    # In the place of a process with TensorFlow: it runs a cell at once.
    def __init__(self, workdir, threads):
        self.workdir, self.cell, self.usable, self.done = workdir, None, True, 0
        self.pipe = None

    def give(self, cell):
        self.cell = cell

    def answer(self):
        cell, folder = self.cell, self.workdir / self.cell.name

        def run(config, path):
            config = config.to_dict()
            with run_folder.RunFolder(path, config) as made:
                if made.summary() is None:
                    if not claims:
                        claims.append(time.monotonic())
                    made.begin(-1)
                    made.log({"epoch": 0})
                    time.sleep(seconds)
                    made.finish({"status": "finished", "seconds": seconds})
                    begun.append(cell.name)

        return pool._run_cell(run, cell, str(self.workdir))

    def end(self):
        pass

    stop = end


workdir, count = pathlib.Path(sys.argv[1]), int(sys.argv[2])
seconds = float(sys.argv[3])
pool._Worker = Worker
pool.attempts.patience = 0
pool.Pool.wait = lambda self, seconds: None if self.running else time.sleep(0.05)
cells = sweeps.cells(default_config(), [{"seed": list(range(count))}])
claims, begun = [], []
ready, go = workdir.parent / "ready", workdir.parent / "go"
(ready / str(os.getpid())).touch()
while not go.exists():
    time.sleep(0.01)
start = time.monotonic()
sweeps.work(cells, workdir, console=Console(quiet=True))
wait = claims[0] - start if claims else -1
print(len(begun), round(wait, 4), round(time.monotonic() - start, 2), flush=True)
print(" ".join(begun), flush=True)
"""


def _operations(log):
    """How many file operations a trace has, by kind, from the beginning of the work."""
    kinds = collections.Counter()
    text = log.read_text(errors="replace")
    # What comes before is Python and its modules.
    text = text[text.rindex('/go", ') :] if '/go", ' in text else text
    for name, rest in re.findall(r"^\d+ +(\w+)\((.*)$", text, re.MULTILINE):
        # Neither of /proc, nor of a file that is open, whose attributes are there.
        if "/proc/" not in rest and "AT_EMPTY_PATH" not in rest:
            kinds[name] += 1
    return kinds


def main():
    """Runs the copies, and prints what came of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--copies", type=int, default=64)
    parser.add_argument("--cells", type=int, default=640)
    parser.add_argument("--seconds", type=float, default=0.0, help="What a cell takes.")
    parser.add_argument("--folder", help="Where to, such as one on NFS.")
    given = parser.parse_args()
    if shutil.which("strace") is None:
        sys.exit("error: this counts with strace, which is not installed.")
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        folder = pathlib.Path(folder)
        workdir = folder / "runs"
        for made in (workdir, folder / "ready", folder / "traces"):
            made.mkdir()
        environment = {
            **os.environ,
            "KERAS_FA_WATCHES": "1",
            "PYTHONPATH": str(pathlib.Path(__file__).resolve().parents[1]),
        }
        processes = [
            subprocess.Popen(
                [
                    *(
                        "strace",
                        "-f",
                        "-qq",
                        "-o",
                        str(folder / "traces" / str(number)),
                    ),
                    *("-e", "trace=%file,fsync,fdatasync,getdents64"),
                    *(sys.executable, "-c", _COPY, str(workdir), str(given.cells)),
                    str(given.seconds),
                ],
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
            )
            for number in range(given.copies)
        ]
        while len(os.listdir(folder / "ready")) < given.copies:
            time.sleep(0.1)
        (folder / "go").touch()
        outputs = [process.communicate()[0].splitlines() for process in processes]
        kinds = collections.Counter()
        for trace in (folder / "traces").iterdir():
            kinds += _operations(trace)
        over = len([*workdir.glob("*/summary.json")])
    numbers = [list(map(float, lines[0].split())) for lines in outputs]
    computed = collections.Counter(n for lines in outputs for n in lines[1].split())
    total = sum(kinds.values())
    waits = sorted(wait for _, wait, _ in numbers if wait >= 0)
    print(f"{given.copies} copies, {given.cells} cells: {over} over")
    print(f"file operations: {total / given.cells:.1f} a cell")
    print(", ".join(f"{n / given.cells:.2f} {kind}" for kind, n in kinds.most_common()))
    print(
        f"time to the first claim: median {1000 * statistics.median(waits):.0f} ms, "
        f"longest {1000 * waits[-1]:.0f} ms"
    )
    print(f"wall time: {max(wall for *_, wall in numbers):.1f} s")
    print(f"computed twice: {sum(n > 1 for n in computed.values())}")


if __name__ == "__main__":
    main()
