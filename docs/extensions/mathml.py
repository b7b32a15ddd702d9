"""Renders mathematics as MathML when the site is built.

Browsers draw MathML themselves, with no script and no font to be fetched, from a file
as well as from a server. MathJax and KaTeX would have to travel along, megabytes of
each, and need JavaScript in the reader's browser or Node at the build.
"""

from docutils import nodes
from latex2mathml.converter import convert


def setup(app):
    """Makes this the renderer of Sphinx's mathematics in HTML."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    app.config.html_math_renderer = "mathml"
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _inline(writer, node):
    writer.body.append(convert(node.astext()))
    raise nodes.SkipNode


def _block(writer, node):
    # A wide formula scrolls by itself, and not the page.
    writer.body.append(writer.starttag(node, "div", CLASS="formula"))
    writer.body.append(convert(node.astext(), display="block"))
    writer.body.append("</div>")
    raise nodes.SkipNode
