r"""Measures the papers' theorems on small networks in NumPy.

Example:
    keras-fa measure --what=theorem_3_2,rk23 --results=results

Cells that stand in the files are not measured again, and rows are written as they come:
the command may be stopped, and goes on when it is given again. `reproduce` makes the
sections of the report of them.
"""

import _binary
from absl import flags
from rich.console import Console

_WHAT = flags.DEFINE_list(
    "what",
    ["all"],
    "Which: all, or names such as theorem_3_2 or rk23, separated by commas.",
)
_RESULTS = flags.DEFINE(
    _binary.PATH,
    "results",
    None,
    "Folder whose folder theory takes the CSV files.",
    required=True,
)


@_binary.program("The same command goes on where the rows are.")
def main():
    """Does what the flags say, and prints a line for each cell."""
    from keras_fa.lab.run import commit
    from keras_fa.papers import measured

    # The brackets of a name or an error are no markup.
    console = Console(markup=False, emoji=False, soft_wrap=True)
    names = list(measured.MEASUREMENTS) if _WHAT.value == ["all"] else _WHAT.value
    unknown = [name for name in names if name not in measured.MEASUREMENTS]
    if unknown:
        raise ValueError(
            f"Unknown measurement: {', '.join(unknown)}. Known: all, "
            f"{', '.join(measured.MEASUREMENTS)}."
        )
    for name in names:

        def tell(row, name=name):
            values = [
                f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"
                for key, value in row.items()
                if key != "curve"
            ]
            console.print(f"{name}: {', '.join(values)}", highlight=False)

        rows = measured.measure(_RESULTS.value / "theory", name, commit(), tell)
        console.print(f"{name}: {len(rows)} rows")


if __name__ == "__main__":
    main()
