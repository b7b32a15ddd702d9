"""Runs campaigns of injected faults and prints what came of them.

Example:
    python -m tests.faults kills disks --count=100
"""

import argparse
import os
import pathlib
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from tests.faults import campaigns


def main():
    """Exits with 1 if anything passed in silence or with a traceback."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="name", default=[])
    parser.add_argument("--count", type=int, help="How many faults; flips: a file.")
    given = parser.parse_args()
    names = given.names or list(campaigns.CAMPAIGNS)
    unknown = sorted(set(names) - set(campaigns.CAMPAIGNS))
    if unknown:
        parser.error(f"Unknown: {unknown}. Known: {', '.join(campaigns.CAMPAIGNS)}.")
    wrong = []
    for name in names:
        campaign, count = campaigns.CAMPAIGNS[name]
        begun = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            count = count if given.count is None else given.count
            report = campaign(count, pathlib.Path(folder))
        print(f"{name} ({time.monotonic() - begun:.0f} s): {report}", flush=True)
        wrong += report.wrong
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
