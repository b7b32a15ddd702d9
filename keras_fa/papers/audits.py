"""Audits of the runs of a grid: each network beside the same one frozen."""

import pandas as pd

from keras_fa import _logs, figures
from keras_fa.lab.run import audit
from keras_fa.papers.sections import to_three_digits

_NOTHING = "depth adds nothing"


def audits(section, runs, folder, expected=None):
    """The audit of each run: a line each, a line for each layer, and a figure.

    Args:
        section: `Section` to write to.
        runs: Its finished runs, with those of frozen parts, which are baselines of the
            runs of their network and seed.
        folder: Of the figures.
        expected: `{label of a rule: whether its depth learns}`, the source's; or None.
    """
    rows, layers, verdicts = [], [], {}
    # What only stands in a record has no weights to audit.
    runs = [run for run in runs if run.record is None]
    if not runs:
        return
    for run in runs:
        network, rule, frozen, seed = _facts(run)
        baselines = [] if frozen else _baselines(run, runs)
        verdict = audit(run.path, [other.path for other in baselines])
        hidden = [row.cosine for row in verdict.rows if row.gradient is not None][:-1]
        measured = pd.Series([c for c in hidden if c is not None], dtype=float)
        growths = [row.growth for row in verdict.rows if row.growth is not None]
        blind = sum(row.unmeasurable is not None for row in verdict.rows)
        facts = {"network": network, "rule": rule, "frozen": frozen, "seed": seed}
        rows.append(
            {
                **facts,
                "accuracy": run.final["val_accuracy"],
                "gain": verdict.gain,
                "verdict": verdict.verdict,
                # The last layer's is 1 by construction.
                "median_cosine": measured.median(),
                "smallest_cosine": measured.min(),
                "largest_growth": max(growths),
                "not_measurable": blind,
                "places": len(verdict.rows),
                "loss": verdict.loss,
                "reason": verdict.reasons[0],
            }
        )
        layers += [{**facts, **row.to_dict()} for row in verdict.rows]
        if frozen is None:
            verdicts.setdefault((network, seed), {})[rule] = verdict
    table = pd.DataFrame(rows).sort_values(
        ["network", "seed", "frozen", "rule"], na_position="first", ignore_index=True
    )
    section.data[f"{section.name}.csv"] = table
    section.data[f"{section.name}_layers.csv"] = pd.DataFrame(layers)
    section.tables["Each run, beside the harder of its baselines."] = _shown(table)
    for (network, seed), found in verdicts.items():
        file = folder / f"{section.name}_{network}_{seed}.png"
        figures.audit(found, file)
        section.figures[f"{network}, seed {seed}."] = file
    _check(section, table, expected or {})


def _facts(run):
    """(network, label of the rule, what is frozen or None, seed) of a run."""
    settings = run.settings
    rule = _logs.look(settings["rule"])[0]
    if settings.get("rule.taps") == "blocks":
        rule = f"{rule} at blocks"
    network = settings["model.name"].rpartition(":")[2]
    return network, rule, settings.get("model.frozen"), settings["seed"]


def _baselines(run, runs):
    """The runs of its network and seed with a part frozen, of each kind one.

    That under its own rule where there is one.
    """
    network, rule, _, seed = _facts(run)
    found = {}
    for other in runs:
        its_network, its_rule, frozen, its_seed = _facts(other)
        is_one = frozen and (its_network, its_seed) == (network, seed)
        if is_one and (frozen not in found or its_rule == rule):
            found[frozen] = other
    return list(found.values())


def _shown(table):
    return pd.DataFrame(
        {
            "network": row.network,
            "method": row.rule,
            "frozen": "-" if pd.isna(row.frozen) else row.frozen,
            "seed": row.seed,
            "test accuracy": f"{row.accuracy:.3f}",
            "above the harder baseline": "-"
            if pd.isna(row.gain)
            else f"{row.gain:+.3f}",
            "cosines, median and smallest": f"{to_three_digits(row.median_cosine)}, "
            f"{to_three_digits(row.smallest_cosine)}",
            "largest growth": f"{row.largest_growth:.3g}",
            "not measurable": f"{row.not_measurable} of {row.places}",
            "verdict": row.verdict,
        }
        for row in table.itertuples()
    )


def _check(section, table, expected):
    body = table[table.frozen == "body"]
    if len(body):
        section.checks.append(
            (
                "A frozen body: depth adds nothing",
                bool((body.verdict == _NOTHING).all()),
                "; ".join(sorted(set(body.reason)))[:200],
            )
        )
    whole = table[table.frozen.isna()]
    for rule, learns in expected.items():
        gains = whole[(whole.rule == rule) & whole.gain.notna()].gain
        if len(gains):
            words = "learns with depth" if learns else _NOTHING
            section.checks.append(
                (
                    f"{rule}: {words}, as published",
                    bool((round(gains.mean(), 9) >= 0.02) == learns),
                    f"{gains.mean():+.3f} over the harder baseline, {len(gains)} seeds",
                )
            )
