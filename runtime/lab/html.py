"""The shell of a report: one HTML file with tables and charts that fetches nothing."""

from __future__ import annotations

from html import escape


def page(title: str, body: str, style: str = "") -> str:
    """Return a whole page.

    Args:
        title: plain text, also the heading.
        body: HTML below the heading; charts in a ``div`` of class ``charts``, wide tables in one of class ``table``.
        style: further CSS.
    """
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{escape(title)}</title><link rel="icon" href="data:,">\n<style>\n{_STYLE}{style}\n</style></head>'
        f"<body>\n<h1>{escape(title)}</h1>\n{body}\n</body></html>\n"
    )


_STYLE = """body { margin: 2rem auto; max-width: 1240px; padding: 0 1rem; font: 15px/1.5 system-ui, sans-serif;
  color: #18181b; background: #fafafa; }
h1 { font-size: 1.4rem; margin: 0 0 .3rem; } h2 { font-size: 1.05rem; margin: 1.4rem 0 .4rem; }
p { color: #52525b; margin: .3rem 0; } .verdict { color: #18181b; font-weight: 600; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 1rem; margin: 1rem 0; }
svg { width: 100%; border: 1px solid #e4e4e8; border-radius: 10px; background: #fff; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid #e4e4e8; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
"""
