"""A report in one HTML file: sections with checks, tables and figures, all embedded."""

import base64
import pathlib

from keras_fa._extras import extra
from keras_fa.lab import run_folder
from keras_fa.papers import claims

with extra("papers"):
    import jinja2

_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { --ink: #1d2433; --faint: #647087; --rule: #dfe3ea; --good: #11734b;
        --bad: #b3261e; --open: #8a6d00; --accent: #0b5cad; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1080px; padding: 2rem 1.25rem 5rem; color: var(--ink);
       font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.9rem; margin: 0 0 .3rem; }
h2 { font-size: 1.35rem; margin: 0; }
h3 { font-size: 1rem; margin: 1.8rem 0 .5rem; }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
.faint { color: var(--faint); }
section { border-top: 2px solid var(--rule); margin-top: 3rem; padding-top: 1.5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem;
        font-variant-numeric: tabular-nums; }
th, td { padding: .28rem .8rem .28rem 0; text-align: right; white-space: nowrap;
         border-bottom: 1px solid var(--rule); }
th { font-weight: 600; border-bottom-color: var(--faint); }
th:first-child, td:first-child { text-align: left; }
td.words, th.words { text-align: left; white-space: normal; }
figure { margin: 1.2rem 0; } figure img { max-width: 100%; max-height: 18rem; }
figcaption, .caption { color: var(--faint); font-size: .9rem; margin: 1.6rem 0 .4rem; }
.claims { table-layout: fixed; width: 100%; margin-bottom: 2.5rem; }
.claims td, .claims th { vertical-align: top; text-align: left; white-space: normal;
                         overflow-wrap: anywhere; }
.claims th:nth-child(1) { width: 17%; } .claims th:nth-child(2) { width: 28%; }
.claims th:nth-child(3) { width: 10%; }
@media (max-width: 640px) {
  h1 { font-size: 1.4rem; }
  figure { overflow-x: auto; }
  figure img { max-width: none; height: 16rem; max-height: none; }
  .claims thead { display: none; }
  .claims tr { display: block; border-bottom: 1px solid var(--rule); padding: .5rem 0; }
  .claims td { display: block; border: 0; padding: .1rem 0; }
  .claims td:first-child { font-weight: 600; }
}
@media print {
  body { max-width: none; font-size: 10pt; padding: 0; }
  .scroll, pre { overflow: visible; } pre { white-space: pre-wrap; }
  th, td { white-space: normal; } figure, tr { break-inside: avoid; }
  section { break-before: page; }
}
.yes { color: var(--good); } .no { color: var(--bad); } .open { color: var(--open); }
.partial { background: #fff7dd; border-left: 4px solid #e0b400; padding: .6rem .9rem;
           margin: 1rem 0; }
details { margin: .6rem 0; } summary { cursor: pointer; color: var(--accent); }
pre { background: #f5f7fa; padding: .8rem; overflow-x: auto; font-size: .8rem; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p class="faint">{{ subtitle }}</p>
{% if judged %}
<h2 id="claims">What holds</h2>
<p>Each numbered statement, figure and table of the three papers: {{ counts }}. A
statement is contrary as soon as one of its checks fails; read its section.</p>
<table class="claims">
<thead><tr><th>statement</th><th class="words">says</th><th>here</th>
<th class="words">numbers</th></tr></thead>
{% for v in judged %}
<tr id="claim-{{ loop.index }}"><td>{{ v.claim.paper }}, {{ v.claim.number }}</td>
<td class="words">{{ v.claim.says }}</td>
<td class="{{ kind(v.verdict) }}">{{ v.verdict }}</td>
<td class="words faint">{{ v.evidence }}{% if v.place %}
 <a href="#{{ v.place }}">section</a>{% endif %}</td></tr>
{% endfor %}
</table>
<h2>Experiments</h2>
{% endif %}
<div class="scroll"><table>
<tr><th>experiment</th><th class="words">source</th>
<th class="words">how much there is</th><th>runs</th><th>checks</th></tr>
{% for s in sections %}
<tr><td><a href="#{{ s.name }}">{{ s.title }}</a></td>
<td class="words">{{ s.source }}</td>
<td class="words">{{ s.complete }}</td>
<td>{{ s.runs|length }}</td>
<td>{{ marks(s) }}</td></tr>
{% endfor %}
</table></div>
{% for s in sections %}
<section id="{{ s.name }}">
<h2>{{ s.title }}</h2>
<p class="faint">{{ s.source }}{% if s.runs %} &middot; {{ s.runs|length }} finished
runs{% endif %}{% if s.complete %} &middot; {{ s.complete }}{% endif %}</p>
{% if s.missing %}
<div class="partial">Partial: {{ s.missing|length }}
cells of the grid are not finished, and all numbers are from those that are.
<details><summary>the missing cells</summary>
<pre>{% for name, state in s.missing.items() %}{{ state }}: {{ name }}
{% endfor %}</pre></details></div>
{% endif %}
{% for caption, file in s.figures.items() %}
<figure><figcaption>{{ caption }}</figcaption>
<img alt="{{ caption }}" src="data:image/png;base64,{{ embed(file) }}"></figure>
{% endfor %}
{% for caption, frame in s.tables.items() %}
<p class="caption">{{ caption }}</p>
<div class="scroll"><table>
<tr>{% for c in frame.columns %}<th>{{ c|replace('_', ' ') }}</th>{% endfor %}</tr>
{% for row in frame.itertuples(index=False) %}
<tr>{% for v in row %}<td>{{ v }}</td>{% endfor %}</tr>
{% endfor %}
</table></div>
{% endfor %}
{% if s.remarks %}
<h3>Remarks</h3>
{% for text in s.remarks.split("\n\n") %}<p>{{ text }}</p>{% endfor %}
{% endif %}
{% if s.checks %}
<h3>What was to be seen</h3>
<div class="scroll"><table>
{% for claim, holds, evidence in s.checks %}
<tr><td class="words">{{ mark(holds) }} {{ claim }}</td>
<td class="words faint">{{ evidence }}</td></tr>
{% endfor %}
</table></div>
{% endif %}
<details><summary>how it was made</summary>
<pre>{{ s.command }}</pre>
<p>Versions: {{ versions(s) }}</p>
<pre>{{ s.config }}</pre></details>
</section>
{% endfor %}
</body>
</html>
"""


def write(sections, path, title, subtitle, whole=False):
    """Writes the report.

    Args:
        sections: List of `keras_fa.papers.Section`.
        path: The HTML file.
        title: Its title.
        subtitle: A line below.
        whole: Whether these are the sections of all experiments, before which the table
            of the papers' statements belongs.

    Returns:
        The path.

    Raises:
        OSError: If it cannot be written.
    """
    # A report of a few sections is no reader's account of the papers.
    judged = claims.judge(sections) if whole else []
    environment = jinja2.Environment(autoescape=True, trim_blocks=True)
    template = environment.from_string(_TEMPLATE)
    text = template.render(
        sections=sections,
        title=title,
        subtitle=subtitle,
        judged=judged,
        counts=_counts(judged),
        kind=_KINDS.get,
        embed=_embed,
        mark=_mark,
        marks=_marks,
        versions=_versions,
    )
    run_folder.write_text(path, text)
    return pathlib.Path(path)


def _embed(path):
    return base64.b64encode(pathlib.Path(path).read_bytes()).decode("ascii")


_KINDS = {
    claims.CONFIRMED: "yes",
    claims.IN_PART: "open",
    claims.CONTRARY: "no",
    claims.NOT_TESTED: "open",
    claims.NOTHING: "faint",
}


def _counts(judged):
    verdicts = [one.verdict for one in judged]
    return ", ".join(f"{verdicts.count(kind)} {kind}" for kind in _KINDS)


_MARKS = {True: ("yes", "✓"), False: ("no", "✗"), None: ("open", "…")}


def _mark(holds):
    kind, sign = _MARKS[holds]
    return jinja2.utils.markupsafe.Markup(f'<span class="{kind}">{sign}</span>')


def _marks(section):
    """The number of checks that hold, fail and are open."""
    parts = []
    for value, (kind, sign) in _MARKS.items():
        count = sum(holds is value for _, holds, _ in section.checks)
        if count:
            parts.append(f'<span class="{kind}">{count} {sign}</span>')
    return jinja2.utils.markupsafe.Markup(" ".join(parts))


def _versions(section):
    """What computed the runs of a section, in words."""
    found = {
        tuple(
            f"{k} {v}"
            for k, v in run.summary["environment"].items()
            if k not in ("devices", "commit")
        )
        for run in section.runs
    }
    return "; ".join(", ".join(versions) for versions in sorted(found)) or "no runs"
