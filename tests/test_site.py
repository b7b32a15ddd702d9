"""What checks the built site finds what is wrong with one."""

import importlib.util
import pathlib

import pandas as pd
import pytest

EXTENSIONS = pathlib.Path(__file__).parents[1] / "docs" / "extensions"


def extension(name):
    spec = importlib.util.spec_from_file_location(name, EXTENSIONS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PAGE = """<html><head><link rel="canonical" href="https://a.example/">
<link rel="stylesheet" href="_static/s.css"></head><body><h1 id="top">x</h1>
<a href="#top">up</a> <a href="sub/">down</a> <a href="https://b.example/c">out</a>
<img src="data:image/png;base64,AA"> {}</body></html>"""


@pytest.fixture
def site(tmp_path):
    (tmp_path / "_static").mkdir()
    (tmp_path / "_static" / "s.css").write_text("a { background: url(s.png) }")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "index.html").write_text('<a href="../index.html#top">x</a>')
    (tmp_path / "index.html").write_text(PAGE.format(""))
    return tmp_path


def test_a_closed_site_has_no_problems_and_its_links_are_listed(site):
    assert extension("closed").problems(site) == ([], ["https://b.example/c"])


@pytest.mark.parametrize(
    ("inside", "told"),
    [
        ('<a href="gone.html">x</a>', "links to gone.html, which is not there"),
        ('<a href="#gone">x</a>', "links to #gone: the page has no such place"),
        ('<a href="sub/index.html#top">x</a>', "sub/index.html#top: the page has no"),
        ('<a href="../outside.html">x</a>', "which is not there"),
        ('<img src="gone.png">', "links to gone.png, which is not there"),
        ('<img src="https://c.example/x.png">', "loads https://c.example/x.png"),
        ('<img srcset="x.png 1x, //c.example/y.png 2x">', "loads //c.example/y.png"),
        ('<script src="//c.example/x.js"></script>', "loads //c.example/x.js"),
        ('<link rel="preconnect" href="https://f.example">', "loads https://f.example"),
        ("<style>@import 'https://c.example/x.css'</style>", "loads https://c.example"),
        ('<p style="background: url(https://c.example/x)">', "loads https://c.example"),
        ('<script>fetch("https://c.example/x")</script>', "loads https://c.example/x"),
    ],
)
def test_what_is_open_is_told_with_its_page(site, inside, told):
    (site / "index.html").write_text(PAGE.format(inside))
    found, _ = extension("closed").problems(site)
    assert len([line for line in found if told in line]) == 1
    assert all(line.startswith("index.html ") for line in found)


def test_what_style_sheets_and_scripts_load_is_told_too(site):
    (site / "_static" / "s.css").write_text("@import url('https://c.example/f.css');")
    (site / "_static" / "s.js").write_text("import('//c.example/m.js')")
    found, _ = extension("closed").problems(site)
    assert found == [
        "_static/s.css loads https://c.example/f.css",
        "_static/s.js loads //c.example/m.js",
    ]


def test_a_table_has_the_means_of_its_lines_with_their_errors():
    pytest.importorskip("sphinx")
    table = extension("measured").table
    frame = pd.DataFrame(
        {
            "rule": ["fa", "fa", "bp", "fa"],
            "network": ["x", "x", "x", "y"],
            "frozen": [None, None, None, "all"],
            "accuracy": [0.1, 0.3, 0.5, 0.9],
        }
    )
    head, body = table(frame, "rule", "accuracy", "network", where="frozen=", digits=2)
    assert head == ["rule", "x"]
    # Two lines: 0.2, and a standard error of half their difference.
    assert body == [["fa", "0.20 ± 0.10"], ["bp", "0.50"]]
    head, body = table(frame, "rule", "accuracy", "network", scale=100.0, digits=0)
    assert (head, body[1]) == (["rule", "x", "y"], ["bp", "50", ""])
    assert table(frame, "rule", "accuracy", where="network=y")[1] == [["fa", "0.900"]]
    # A number that each line repeats is not measured twice.
    body = table(frame.assign(paper=0.2), "rule", "paper", where="frozen=")[1]
    assert body == [["fa", "0.200"], ["bp", "0.200"]]
    unmeasured = frame.assign(accuracy=[0.1, None, None, 0.9])
    body = table(unmeasured, "rule", "accuracy", "network", where="frozen=")[1]
    assert body == [["fa", "0.100"], ["bp", ""]]
    with pytest.raises(ValueError, match="networks"):
        table(frame, "rule", "accuracy", "networks")
