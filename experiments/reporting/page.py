"""The report as one HTML file and as Markdown, from findings, figures and the runs' own records."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from experiments.claims import Finding
from experiments.files import atomic_path, write_json
from experiments.reporting.collect import Collection
from experiments.reporting.gallery import Drawn
from experiments.reporting.numbers import VERDICTS, as_dict, counts
from experiments.reporting.provenance import commands, environment, setting
from experiments.tables import markdown

TEMPLATES = Path(__file__).parent / "templates"
TITLE = "Which parts of a looped language model's state can its loss not see?"
LEAD = (
    "Every claim this project tests on trained models: what was predicted, what was observed over seeds, and the "
    "verdict. A claim that is not supported is printed like any other."
)
FIXED = (
    "Not every prediction was blind. {before} were written down, with their thresholds, before their quantity was "
    "measured on any sweep. {after} ask for norms, losses, exits, radial fractions, rescaling, regime numbers or "
    "carry, which an earlier sweep of the cpu preset had shown when the thresholds were set; these runs "
    "repeat them. Each row says which it is."
)
HOW_JUDGED = (
    "A verdict asks that every seed and both ends of the 95 % interval over seeds (Student t, of the logarithm for "
    "positive quantities) lie beyond the rule's threshold, in every case measured; one case beyond the refuting "
    "threshold is enough for “not supported”. Between the thresholds, or with one seed, nothing is decided. Claims "
    "true by construction follow from the readout's definition: they test the code and are no evidence. Intervals are "
    "not corrected for the number of claims."
)
NOT_CONFIRMED = ("not supported", "inconclusive", "not measured")
COLUMNS = (
    ("Claim", "claim"),
    ("Source", "source"),
    ("Predicted", "predicted"),
    ("Observed", "observed"),
    ("Verdict", "rank"),
)


def write(out: Path, findings: Sequence[Finding], drawn: Sequence[Drawn], collection: Collection, today: Any) -> None:
    """Write index.html, report.md, claims.md, claims.json and figures/*.png.

    Args:
        out: folder.
        findings: one a claim.
        drawn: every figure.
        collection: the runs, at least one, and what was left out.
        today: description of software and machine that makes the report.
    """
    rows = [as_dict(finding) for finding in findings]
    for row in rows:
        row["rank"] = VERDICTS.index(row["verdict"])
        row["case_table"] = _case_table(row)
    made_with = environment(collection, today)
    shared: dict[str, Any] = {
        "title": TITLE,
        "lead": LEAD,
        "fixed": _fixed(findings),
        "how_judged": HOW_JUDGED,
        "setting": setting(collection),
        "counts": counts(findings),
        "tally": ", ".join(f"{number} {verdict}" for verdict, number in counts(findings).items()) + ".",
        "findings": rows,
        "figures": {item.picture.key: item for item in drawn},
        "skipped": collection.skipped,
        "commands": commands(collection),
        "environment": made_with,
    }
    page = {"columns": COLUMNS, "style": _asset("style.css"), "script": _asset("script.js")}
    claims_table = _claims_table(rows)
    text = {
        "claims_table": claims_table,
        "skipped_table": markdown(["what", "why"], [[_cell(s.name), _cell(s.reason)] for s in collection.skipped]),
        "environment_table": markdown(["", ""], [[name, _cell(value)] for name, value in made_with]),
    }
    _write_text(out / "index.html", _render("page.html.j2", autoescape=True, **shared, **page))
    _write_text(out / "report.md", _render("report.md.j2", autoescape=False, **shared, **text))
    _write_text(out / "claims.md", unconfirmed(rows, shared["tally"]) + "\n")
    kept = {"rank", "case_table"}
    write_json(out / "claims.json", [{key: row[key] for key in row if key not in kept} for row in rows])
    for item in drawn:
        path = out / "figures" / f"{item.picture.key}.png"
        path.unlink(missing_ok=True)  # of an earlier report, whose runs had this measurement
        if item.png is not None:
            with atomic_path(path) as temporary:
                temporary.write_bytes(item.png)


def unconfirmed(rows: Sequence[Mapping[str, Any]], tally: str) -> str:
    """The short form for a README: how many claims came out how, and those that did not come out as predicted.

    Args:
        rows: claims as in `claims.json`.
        tally: the counts in words.
    """
    header, keys = ("Claim", "Predicted", "Observed", "Verdict"), ("claim", "predicted", "observed", "verdict")
    worst_first = [row for verdict in NOT_CONFIRMED for row in rows if row["verdict"] == verdict]
    table = markdown(header, [[_cell(row[key]) for key in keys] for row in worst_first])
    late, early = (sum(row["fixed"].startswith(word) for row in rows) for word in ("after", "before"))
    supported = [row for row in rows if row["verdict"] == "supported"]
    given = sum(row["basis"] == "by construction" for row in supported)
    repeated = sum(row["basis"] == "empirical" and row["fixed"].startswith("after") for row in supported)
    return (
        f"{len(rows)} claims: {tally} Of those supported, {given} hold by construction, trained or not, and test the "
        f"code; {repeated} were written down after an earlier sweep had shown their quantity, and repeat it; "
        f"{len(supported) - given - repeated} were predicted before anybody had seen it. Of all {late + early} "
        f"predictions {late} were written down after such a look. Those not confirmed:\n\n{table}"
    )


def _fixed(findings: Sequence[Finding]) -> str:
    after = [finding.claim.fixed_after_looking for finding in findings if finding.claim.rule is not None]
    return FIXED.format(before=after.count(False), after=after.count(True))


def _render(name: str, *, autoescape: bool, **values: Any) -> str:
    loader = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=autoescape, undefined=StrictUndefined, keep_trailing_newline=True
    )
    loader.filters["slug"] = lambda text: text.replace(" ", "-")
    return loader.get_template(name).render(**values)


def _asset(name: str) -> Any:
    from markupsafe import Markup

    return Markup((TEMPLATES / name).read_text(encoding="utf-8"))


def _write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _claims_table(rows: Sequence[dict[str, Any]]) -> str:
    header = ["Claim", "Source", "Basis", "Predicted", "Observed", "Verdict"]
    keys = ("claim", "source", "basis", "predicted", "observed", "verdict")
    return markdown(header, [[_cell(row[key]) for key in keys] for row in rows])


def _case_table(row: dict[str, Any]) -> str:
    lines = []
    for case in row["cases"]:
        left_out = f" ({'; '.join(case['left_out'])})" if case["left_out"] else ""
        lines.append([case["case"], case["text"], case["by_seed"] + left_out, case["verdict"]])
    return markdown(
        ["case", "estimate [95 %]", "by seed", "verdict"], [[_cell(cell) for cell in line] for line in lines]
    )


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|")
