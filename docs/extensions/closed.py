"""Checks the built site: links lead somewhere, and no page asks for anything outside.

Links to other sites are listed, not fetched.
"""

import html.parser
import pathlib
import re
import urllib.parse

# Tags and their attributes that a browser fetches without being asked.
_FETCHED = {
    "audio": ("src",),
    "embed": ("src",),
    "iframe": ("src",),
    "img": ("src", "srcset"),
    "input": ("src",),
    "link": ("href",),
    "object": ("data",),
    "script": ("src",),
    "source": ("src", "srcset"),
    "track": ("src",),
    "video": ("src", "poster"),
}
# What of a page's links names a place, and fetches nothing.
_NAMED = {"canonical", "author", "license", "next", "prev"}
_OUTSIDE = re.compile(r"^(\w+:)?//")
_IN_STYLES = re.compile(r"(?:url\(\s*|@import\s+)[\"']?((?:https?:)?//[^\"')\s]+)")
_IN_SCRIPTS = re.compile(
    r"(?:fetch|import|importScripts|open|load)\w*\(\s*[\"'`]((?:https?:)?//[^\"'`]+)"
)


class NotClosedError(Exception):
    """A page links to nowhere, or loads something from elsewhere."""


class _Page(html.parser.HTMLParser):
    """What a page names, links and fetches."""

    def __init__(self, text):
        super().__init__()
        self.names, self.links, self.fetched, self.code = {""}, [], [], []
        self._inside = None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = {k: v for k, v in attributes if v}
        self._inside = tag if tag in ("style", "script") else None
        self.names |= {values[key] for key in ("id", "name") if key in values}
        if "style" in values:
            self.code.append(values["style"])
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if not (tag == "link" and _NAMED & set(values.get("rel", "").split())):
            for key in _FETCHED.get(tag, ()):
                for one in values.get(key, "").split(", "):
                    self.fetched += one.split()[:1]

    def handle_data(self, data):
        if self._inside:
            self.code.append(data)


def problems(folder):
    """What is wrong with a built site, and where it links to.

    Args:
        folder: The folder of the pages.

    Returns:
        `(problems, links)`: a list of texts, each with its page, and the sorted
        addresses of other sites.
    """
    folder = pathlib.Path(folder).resolve()
    pages = {p: _Page(p.read_text()) for p in sorted(folder.rglob("*.html"))}
    found, outside = [], set()
    for path, page in pages.items():
        where = path.relative_to(folder)
        for address in page.fetched:
            if _OUTSIDE.match(address):
                found.append(f"{where} loads {address}")
            elif not address.startswith("data:"):
                found += _missing(folder, path, address, pages)
        for address in page.links:
            if _OUTSIDE.match(address) or address.startswith("mailto:"):
                outside.add(address)
            else:
                found += _missing(folder, path, address, pages)
        for code in page.code:
            found += [f"{where} loads {a}" for a in _loaded(code)]
    for path in sorted([*folder.rglob("*.css"), *folder.rglob("*.js")]):
        where = path.relative_to(folder)
        found += [f"{where} loads {a}" for a in _loaded(path.read_text())]
    return found, sorted(outside)


def _loaded(code):
    return _IN_STYLES.findall(code) + _IN_SCRIPTS.findall(code)


def _missing(folder, path, address, pages):
    """A list with the complaint, if an address of the site leads nowhere."""
    parts = urllib.parse.urlsplit(address)
    target = path
    if parts.path:
        target = (path.parent / urllib.parse.unquote(parts.path)).resolve()
    if target.is_dir():
        target = target / "index.html"
    name = urllib.parse.unquote(parts.fragment)
    where = path.relative_to(folder)
    if not target.is_relative_to(folder) or not target.is_file():
        return [f"{where} links to {address}, which is not there"]
    if target in pages and name not in pages[target].names:
        return [f"{where} links to {address}: the page has no such place"]
    return []


def setup(app):
    """Checks at the end of each build of pages."""
    app.connect("build-finished", _check, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _check(app, failure):
    if failure is not None or app.builder.format != "html":
        return
    found, outside = problems(app.outdir)
    listed = pathlib.Path(app.outdir).with_name("links.txt")
    listed.write_text("\n".join(outside) + "\n")
    print(f"Links to other sites: {len(outside)}, listed in {listed}.")
    if found:
        raise NotClosedError("The site is not closed:\n" + "\n".join(found))
