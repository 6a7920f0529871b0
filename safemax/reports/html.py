"""The elements of a report's page: document, table, figure, bar; all text that comes from outside is escaped here."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape

STYLE = """
:root { --ink: #1c2430; --soft: #5d6875; --line: #dfe3e8; --paper: #fff; --good: #17693f; --bad: #a3152d; --note: #8a5a00; }
* { box-sizing: border-box; }
body { margin: 0; background: #f4f5f7; color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 40px 64px; background: var(--paper); }
h1 { font-size: 26px; margin: 0; } h2 { font-size: 19px; margin: 44px 0 10px; } h3 { font-size: 15px; margin: 26px 0 6px; }
p, li { max-width: 80ch; } .soft, small, caption, figcaption { color: var(--soft); } code { font-size: 12px; color: var(--soft); }
.verdict { margin: 20px 0; padding: 16px 20px; border-left: 6px solid; background: #f8f9fa; }
.verdict > b { font-size: 21px; display: block; } .good { border-color: var(--good); } .good > b { color: var(--good); }
.bad { border-color: var(--bad); } .bad > b { color: var(--bad); } .flag { color: var(--note); margin: 8px 0 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(210px, 1fr)); gap: 12px; margin: 20px 0; }
.card { border: 1px solid var(--line); border-radius: 6px; padding: 12px 14px; } .card b { font-size: 23px; display: block; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { padding: 5px 10px 5px 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { font-weight: 600; color: var(--soft); font-size: 12.5px; } td.n, th.n { text-align: right; white-space: nowrap; }
td.n { font-variant-numeric: tabular-nums; } tr.holds td { background: #fdf1e7; } tr.near td:first-child { font-weight: 600; }
img { max-width: 100%; height: auto; } figure { margin: 16px 0; }
.bar { display: inline-block; height: 9px; background: #8fa3bf; vertical-align: baseline; } td code { word-break: break-all; }
@media print { body { background: none; } main { padding: 0; } }
"""


def document(title: str, body: str) -> str:
    """Return an HTML document, UTF-8, that refers to nothing outside it."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><main>\n{body}\n</main></body></html>\n"
    )


def figure(png: bytes, caption: str) -> str:
    """Return a picture with the sentence under it."""
    said = escape(caption)
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return f'<figure><img alt="{said}" src="{source}"><figcaption>{said}</figcaption></figure>'


def table(heads: Iterable[str], rows: Sequence[Sequence[str]], marked: Sequence[str] = ()) -> str:
    """Return a table of cells; a head that begins with > is over numbers. `marked` gives each row a style."""
    top = "".join(f'<th class="n">{escape(h[1:])}</th>' if h[:1] == ">" else f"<th>{escape(h)}</th>" for h in heads)
    styles = [f' class="{name}"' if name else "" for name in marked or [""] * len(rows)]
    body = "".join(f"<tr{style}>{''.join(row)}</tr>" for style, row in zip(styles, rows, strict=True))
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def cell(text: str, key: str = "") -> str:
    """Return a table's cell, with a name for machines under it."""
    parts = [escape(text)] * bool(text) + [f"<code>{escape(key)}</code>"] * bool(key)
    return f"<td>{'<br>'.join(parts)}</td>"


def number(text: str, *, strong: bool = False) -> str:
    """Return a table's cell that is aligned to the right."""
    return f'<td class="n">{f"<b>{escape(text)}</b>" if strong else escape(text)}</td>'


def bar(share: float) -> str:
    """Return a table's cell with a share of 0 to 100 as a bar, nothing below one half."""
    inside = f'<span class="bar" style="width: {0.5 * share:.0f}px"></span> {share:.0f}' if share >= 0.5 else ""
    return f"<td>{inside}</td>"
