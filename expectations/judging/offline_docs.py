"""Makes the data docs that Great Expectations has rendered readable without a network.

Its pages fetch styles, scripts and a logo (whose address names this installation) from other hosts, and its
index is a script's work. What is fetched is taken out, a small style takes its place, and the index becomes
a plain table.
"""

from __future__ import annotations

import html
import json
import re
from datetime import datetime
from pathlib import Path

_FETCHED = re.compile(
    r"""<script\b[^>]*\bsrc=["']https?:[^>]*>\s*</script>"""
    r"""|<link\b[^>]*\bhref=["']https?:[^>]*>"""
    r"""|<img\b[^>]*\bsrc=["']https?:[^>]*>"""
    r"""|\burl\(["']?https?:[^)]*\)""",
)
_SCRIPTS = re.compile(r"<script\b.*?</script>", re.DOTALL)
_MARK = '<style id="offline">'
_STYLE = (
    _MARK
    + """
body{font:14px/1.5 system-ui,sans-serif;margin:0;color:#212529;background:#fff}
a{color:#0056b3;text-decoration:none} table{border-collapse:collapse;width:100%}
td,th{border-top:1px solid #dee2e6;padding:.35rem .6rem;text-align:left;vertical-align:top}
.container-fluid{padding:0 1rem} .container-fluid>.row{display:flex;gap:1.5rem}
.col-md-10{flex:1;min-width:0} .col-md-2{flex:0 0 18rem} .sticky{position:sticky;top:1rem}
.nav,.breadcrumb{list-style:none;padding:0;margin:.3rem 0} .breadcrumb li{display:inline}
.breadcrumb li+li::before{content:" / "} nav{padding:.2rem 1rem} .card nav{padding:0}
.card{border:1px solid #dee2e6;border-radius:4px;margin-bottom:1rem;overflow:auto}
.card-header,.alert{background:#f1f3f5;padding:.4rem .7rem;border-radius:4px} .card-body{padding:.6rem}
.text-danger,.failed{color:#c92a2a} .text-success,.passed{color:#2b8a3e}
.fa-check-circle::before{content:"\\2714"}
.fa-times::before,.fa-exclamation-triangle::before{content:"\\2718"}
.ge-section{border:1px solid #dee2e6;border-radius:4px;margin-bottom:.8rem;padding:.4rem 1rem}
.badge{padding:.1rem .4rem;border-radius:4px;background:#e9ecef} label{cursor:pointer;margin:0 .6rem}
.cooltip .top,.collapse,.footer,.modal{display:none} .progress{display:none}
.failed-only .hide-succeeded-validation-target,.failed-only :has(>.hide-succeeded-validation-target-child),
.failed-only :has(>*>.hide-succeeded-validations-column-section-target-child){display:none}
</style>
<script>
function showAllValidations(){document.body.classList.remove("failed-only")}
function hideSucceededValidations(){document.body.classList.add("failed-only")}
</script>
"""
)


def make_offline(folder: Path) -> None:
    """Rewrites the pages under `folder` that still fetch something, and the index.

    Args:
        folder: The site, with the validations that it shows in `.validations`.
    """
    for page in (*folder.glob("validations/**/*.html"), *folder.glob("expectations/**/*.html")):
        text = page.read_text(encoding="utf-8")
        if _MARK not in text:
            text = _SCRIPTS.sub("", _FETCHED.sub("", text))
            _write(page, text.replace("</head>", _STYLE + "</head>", 1))
    _write(folder / "index.html", _index(folder))


def _index(folder: Path) -> str:
    rows = []
    for path in folder.glob(".validations/**/*.json"):
        place = path.relative_to(folder / ".validations").with_suffix(".html")
        page = folder / "validations" / place
        if page.exists():
            suite, run, time = place.parts[:3]
            rows.append((time, suite, run, bool(json.loads(path.read_text())["success"]), page))
    lines = [
        f"<tr><td>{datetime.strptime(time[:15], '%Y%m%dT%H%M%S')} UTC</td><td>{html.escape(suite)}</td>"
        f'<td><a href="{html.escape(page.relative_to(folder).as_posix(), quote=True)}">{html.escape(run)}</a>'
        f'</td><td class="{"passed" if passed else "failed"}">{"passed" if passed else "failed"}</td></tr>'
        for time, suite, run, passed, page in sorted(rows, reverse=True)
    ]
    head = f'<!DOCTYPE html><html><head><meta charset="UTF-8"><title>Gates</title>{_STYLE}</head>'
    names = "<tr><th>judged</th><th>suite</th><th>day</th><th>result</th></tr>"
    body = f'<body><div class="container-fluid"><h1>Gates</h1><table>{names}{"".join(lines)}</table></div>'
    return f"{head}{body}</body></html>\n"


def _write(path: Path, text: str) -> None:
    neighbour = path.with_name(f".{path.name}.new")
    neighbour.write_text(text, encoding="utf-8")
    neighbour.replace(path)
