"""An audit as one HTML page that holds everything: the verdict, figures as inline SVG, tables.

The figures need matplotlib (`pip install "loopsight[cli]"`); importing it waits until a page is asked for.
"""

import io
import math
from collections.abc import Sequence
from html import escape
from typing import Any

from loopsight.auditing.report import AuditReport
from loopsight.auditing.wording import HEADER, direction_cells, headline, in_words, interval, number

INSTALL = 'pip install "loopsight[cli]"'
STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:1rem 0;display:block;overflow-x:auto}td,th{border:1px solid #ccc;
padding:.25rem .6rem;text-align:left}th{background:#f4f4f4}.verdict{font-size:1.3rem;padding:1rem;background:#f4f4f4;
border-left:.5rem solid #0173b2}.active{border-color:#d55e00}.invalid{border-color:#999}figure{margin:1.5rem 0}
svg{max-width:100%;height:auto}pre{overflow-x:auto;background:#f4f4f4;padding:1rem;font-size:.8rem}"""
FLOOR = 1e-34  # of a visibility on a logarithmic axis
COLOURS = {"visible": "#029e73", "blind and active": "#d55e00"}
OTHER = "#0173b2"


def html(report: AuditReport) -> str:
    """The page.

    Raises:
        ModuleNotFoundError: matplotlib is missing, with the line that installs it.
    """
    unsure = not report.valid or (report.undecided and not report.blind)
    state = "invalid" if unsure else "active" if report.blind_and_active else "fine"
    parts = [
        f'<p class="verdict {state}">{escape(headline(report))}</p>',
        _figure(_norms(report), "Norm of the state by loop: what was predicted from the trained loops, and seen."),
        _figure(_map(report), "Every direction judged: left is blind, up is kept. Top left is what can grow unseen."),
        "<h2>Directions</h2>",
        _table(HEADER, [direction_cells(d) for d in report.directions]),
    ]
    if report.loss is not None:
        loss = report.loss
        rows = [
            ("1 loop instead of K", interval(loss.k_gap)),
            ("2 K loops instead of K", interval(loss.beyond)),
            ("norm clamped at readout", interval(loss.decode_clamp)),
            ("norm clamped in every loop", interval(loss.recurrent_clamp)),
        ]
        parts += ["<h2>Change of cross-entropy, nats a token</h2>", _table(("what", "change (95 %)"), rows)]
    if report.remedies:
        remedies = [
            (r.name, r.verdict, number(r.l2_norm), interval(r.loss_change), number(r.setting), r.effect, r.line)
            for r in report.remedies
        ]
        header = ("remedy", "scale then", "norm it settles at", "loss now", "setting", "effect", "how")
        parts += ["<h2>Remedies</h2>", _table(header, remedies)]
    parts.append(f"<h2>Everything</h2><pre>{escape(in_words(report))}</pre>")
    title = escape(f"Audit of {report.name}")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{STYLE}</style></head>\n<body><h1>{title}</h1>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def _norms(report: AuditReport) -> str:
    figure, axes = _axes()
    axes.plot([row.k for row in report.loops], [row.l2_norm for row in report.loops], "o-", color=OTHER, label="run")
    seen = [f for f in report.growth.forecasts if f.predicted is not None]
    if seen:
        loops = [f.loops for f in seen]
        axes.fill_between(loops, [f.low for f in seen], [f.high for f in seen], alpha=0.2, color="#d55e00", lw=0)
        axes.plot(loops, [f.predicted for f in seen], "--", color="#d55e00", label="predicted, with bounds")
    observed = [(f.loops, f.observed) for f in report.growth.forecasts if f.observed is not None]
    axes.plot([k for k, _ in observed], [norm for _, norm in observed], "x", color="black", label="observed")
    axes.set(xlabel="loops", ylabel="mean Euclidean norm")
    axes.legend(frameon=False)
    return _svg(figure, f"Norm by loop of {report.name}")


def _map(report: AuditReport) -> str:
    figure, axes = _axes()
    measured = [d for d in report.directions if math.isfinite(d.visibility) and math.isfinite(d.activity)]
    xs = [max(d.visibility, FLOOR) for d in measured]
    ys = [max(d.activity, 1e-12) for d in measured]
    for n, (d, x, y) in enumerate(zip(measured, xs, ys, strict=True)):
        axes.plot([x], [y], "o", ms=9, color=COLOURS.get(d.verdict, OTHER))
        axes.annotate(d.name, (x, y), textcoords="offset points", xytext=(8, 6 + 12 * (n % 3)), fontsize=8)
    axes.axvline(1e-6, color="grey", lw=1, ls=":")
    axes.axhline(0.95, color="grey", lw=1, ls=":")
    axes.set(xscale="log", yscale="log", xlabel="visibility (1: as an isotropic direction)", ylabel="activity")
    axes.set(xlim=(FLOOR, 10 * max([100.0, *xs])), ylim=(min([1.0, *ys]) / 10, 10 * max([10.0, *ys])))
    return _svg(figure, f"Visibility and activity of the directions of {report.name}")


def _axes() -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"figures need matplotlib; install it with: {INSTALL}.", name="matplotlib") from error
    figure = Figure(figsize=(7.0, 3.6), layout="constrained")
    return figure, figure.subplots()


def _svg(figure: Any, description: str) -> str:
    import matplotlib

    text = io.StringIO()
    # A fixed salt and no date: the same report gives the same page.
    with matplotlib.rc_context({"svg.hashsalt": description, "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(description)}"', 1)


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"
