"""What the peers of benchmarks/run.py say: a question a line, a line for an answer.

Runs under their interpreters, so that it needs nothing but Python.
"""

import json
import sys


def answer(about, stepper):
    """Answers questions until there are no more.

    Args:
        about: Dict that JSON can hold, which is said first: `rules` and `modes` that
            `stepper` knows, and versions.
        stepper: Function of what to make to a function that times a step, in seconds.
    """
    print(json.dumps(about), flush=True)
    steps = []
    for line in sys.stdin:
        question = json.loads(line)
        if "step" in question:
            found = steps[question["step"]]()
        else:
            steps.append(stepper(**question))
            found = len(steps) - 1
        print(json.dumps(found), flush=True)
