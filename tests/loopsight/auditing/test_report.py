"""A report made by hand, in words, as a page and as JSON: what it holds is shown where it belongs."""

import json
import math
import re
from dataclasses import replace

import pytest

from loopsight import AuditReport
from loopsight.auditing import page
from loopsight.auditing.page import html
from loopsight.auditing.report import (
    Calibration,
    Direction,
    Forecast,
    Gauge,
    Growth,
    Interval,
    LoopRow,
    LossReport,
    LowPrecision,
    OptimiserLaw,
    ParameterSymmetry,
    Remedy,
)
from loopsight.auditing.wording import headline


def interval(estimate):
    return Interval(estimate=estimate, low=estimate - 0.5, high=estimate + 0.25, unit="sequences", count=3)


SCALE = Direction(
    name="scale", kind="scale", dimension=1, visibility=3e-15, finite_change=1.5e-7, activity=0.98, activity_low=0.97,
    drive=0.0152, deferred=0.0, verdict="blind and active", tokens_with=8, tokens_searched=9, span=None, basis=(),
)  # fmt: skip
MEAN = replace(SCALE, name="mean direction", kind="mean", visibility=0.75, drive=-0.2, verdict="blind but contracted")
FAMILY = Direction(
    name="2 fixed vectors", kind="fixed", dimension=2, visibility=4e-9, finite_change=None, activity=0.75,
    activity_low=0.25, drive=0.125, deferred=None, verdict="undecided", tokens_with=7, tokens_searched=9, span=2,
    basis=((1.0, 0.0), (0.0, 1.0)),
)  # fmt: skip
SEEN = replace(FAMILY, name="seen", dimension=1, visibility=0.5, activity=0.5, verdict="visible")
REPORT = AuditReport(
    version=1, name="model", dtype="float32", device="cpu", parameters=12_345_678, tokens=60, width=24, classes=40,
    num_loops=3, valid=True,
    calibration=Calibration(
        valid=True, raw_head_change=6.9, normalised_head_change=3e-16, random_change=1.0, reason="nothing moves."
    ),
    directions=(SCALE, MEAN, FAMILY, SEEN), least_visible=(0.11, 0.2), readout_degree=0.0625, epsilon_leak=5.6e-8,
    growth=Growth(
        regime_number=0.125, gain=0.9, radial_increment=3.0, displacement=5.0,
        forecasts=(
            Forecast(loops=3, predicted=None, low=None, high=None, observed=21.0),
            Forecast(loops=6, predicted=23.0, low=22.0, high=26.0, observed=24.0),
            Forecast(loops=12, predicted=27.0, low=25.0, high=36.0, observed=None),
        ),
        low_precision=(
            LowPrecision(dtype="bfloat16", loops_until_stagnation=326.0, loops_until_overflow=math.inf),
            LowPrecision(dtype="float16", loops_until_stagnation=math.nan, loops_until_overflow=17.0),
        ),
    ),
    loops=(
        LoopRow(k=0, cross_entropy=None, l2_norm=20.0),
        LoopRow(k=1, cross_entropy=3.5, l2_norm=20.5),
        LoopRow(k=2, cross_entropy=3.25, l2_norm=20.75),
    ),
    loss=LossReport(k_gap=interval(1.0), beyond=interval(2.0), decode_clamp=None, recurrent_clamp=interval(4.0)),
    gauge=Gauge(
        dimension=1, tensors=8, smallest_visible=4e-3, largest_blind=4e-10,
        generators=(ParameterSymmetry(tensors=("head", "down"), degrees=(1.0, -0.5)),),
        laws=(OptimiserLaw(optimiser="SGD", law="n grows"),),
    ),
    remedies=(
        Remedy(
            name="damping", verdict="blind but contracted", l2_norm=15.0, loss_change=interval(6.0), setting=0.875,
            effect="keeps a share", line="h = 0.875 * h",
        ),
    ),
    notes=("a note", "another"), seconds=3.25,
)  # fmt: skip

WORDS = """\
BLIND AND ACTIVE: the readout cannot see the scale, and the recurrence keeps it. A loop makes 0.9 of the norm and \
adds 3, so that it settles. Undecided: 2 fixed vectors.

model: 3 loops, width 24, 40 classes, 12.3M parameters, float32 on cpu; 60 tokens, 3.2 s.
Readout of degree 0.0625 in the state (1 raw, 0 blind to its scale). Epsilon leaves a leak of 5.6e-08 of the scale.
Least visible directions that are not blind: 0.11, 0.2 of an isotropic one.
Calibration: a raw head sees these states rescaled (6.9 nats), a parameter-free RMSNorm does not (3e-16).

| direction       | dim | verdict              | visibility | finite change | activity     | drive   | deferred |
|-----------------|-----|----------------------|------------|---------------|--------------|---------|----------|
| scale           | 1   | blind and active     | 3.0e-15    | 1.5e-07       | 0.98         | +0.0152 | 0.0e+00  |
| mean direction  | 1   | blind but contracted | 7.5e-01    | 1.5e-07       | 0.98         | -0.2    | 0.0e+00  |
| 2 fixed vectors | 2   | undecided            | 4.0e-09    | -             | 0.25 to 0.75 | 0.125   | -        |
| seen            | 1   | visible              | 5.0e-01    | -             | 0.5          | +0.125  | -        |

Regime number 0.12: the large-norm regime holds. Of a large norm a loop keeps 0.9 and adds 3.

| loops | predicted norm | bounds   | observed |
|-------|----------------|----------|----------|
| 3     | -              | - to -   | 21       |
| 6     | 23             | 22 to 26 | 24       |
| 12    | 27             | 25 to 36 | -        |

Loops until a residual stream in bfloat16 stops moving: 326; until it overflows: never.
Loops until a residual stream in float16 stops moving: -; until it overflows: 17.

| loops | cross-entropy | mean norm |
|-------|---------------|-----------|
| 0     | -             | 20        |
| 1     | 3.5           | 20.5      |
| 2     | 3.25          | 20.75     |

| what                       | change of cross-entropy, 95 % over 3 sequences |
|----------------------------|------------------------------------------------|
| 1 loop instead of K        | +1.0000 (+0.5000 to +1.2500)                   |
| 2 K loops instead of K     | +2.0000 (+1.5000 to +2.2500)                   |
| norm clamped at readout    | -                                              |
| norm clamped in every loop | +4.0000 (+3.5000 to +4.2500)                   |

Scaling symmetries between 8 parameter tensors: 1 (singular values 4e-10 against 4e-03).
  head x c^1, down x c^-0.5
SGD: n grows.

| remedy  | scale then           | norm it settles at | loss now, untrained          | setting | how           |
|---------|----------------------|--------------------|------------------------------|---------|---------------|
| damping | blind but contracted | 15                 | +6.0000 (+5.5000 to +6.2500) | 0.875   | h = 0.875 * h |

note: a note
note: another
"""


def test_a_report_in_words():
    assert str(REPORT) == WORDS


def test_what_was_not_asked_leaves_no_gap():
    bare = replace(REPORT, loss=None, gauge=None, remedies=(), notes=())
    text = str(bare)
    assert text == WORDS.partition("\n\n| loops | cross")[0] + "\n"
    unknown = str(replace(bare, parameters=None, epsilon_leak=None, least_visible=()))
    assert "40 classes, float32 on cpu" in unknown and "leak" not in unknown and "not blind: none of" in unknown
    assert "a leak of 0.0e+00" in str(replace(bare, epsilon_leak=0.0))
    first = replace(REPORT.loss, beyond=None, recurrent_clamp=None)
    assert "95 % over 3 sequences" in str(replace(REPORT, loss=first))
    assert "95 %" not in str(replace(bare, loss=replace(first, k_gap=None)))
    assert "the large-norm regime does not hold, so nothing is predicted" in str(with_growth(forecasts=FORECASTS[:1]))


FORECASTS = REPORT.growth.forecasts


def with_growth(**changes):
    return replace(REPORT, growth=replace(REPORT.growth, **changes))


def test_symmetries_without_a_gap_show_both_sides_of_it():
    unsure = replace(REPORT.gauge, smallest_visible=2e-8, largest_blind=3e-9)
    assert (
        "1 or so, since there is no gap between the singular values of those that count (3e-09) and of the others "
        in (text := str(replace(REPORT, gauge=unsure)))
    )
    assert "(2e-08)" in text and "head x" not in text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gain": 1.0009}, "A loop adds 3 to the norm."),
        ({"gain": 1.0011}, "A loop makes 1.001 of the norm and adds 3."),
        ({"regime_number": 0.5}, "so that it settles."),
        ({"regime_number": 0.51}, "the recurrence keeps it."),
        ({"radial_increment": 0.0}, "the recurrence keeps it."),
        ({"radial_increment": math.nan}, "the recurrence keeps it."),
        ({"gain": 0.0}, "the recurrence keeps it."),
    ],
)
def test_growth_is_told_where_it_is_known(changes, said):
    assert headline(with_growth(**changes)).removesuffix(" Undecided: 2 fixed vectors.").endswith(said)


def test_the_headline_names_what_is_blind_and_what_is_kept():
    kept = replace(FAMILY, verdict="blind and active")
    three = replace(REPORT, directions=(MEAN, kept, replace(SCALE, kind="field", name="a field")))
    assert headline(three) == (
        "BLIND AND ACTIVE: the readout cannot see 2 fixed vectors and a field, and the recurrence keeps it."
    )
    assert headline(replace(REPORT, directions=(replace(SCALE, verdict="blind but removed"), MEAN, FAMILY))) == (
        "BLIND, BUT NOT KEPT: the readout cannot see the scale and the mean direction, and the recurrence does not "
        "keep it. Undecided: 2 fixed vectors."
    )
    unjudged = [replace(d, verdict="undecided") for d in (SCALE, MEAN, FAMILY)]
    assert "but the scale, the mean direction and 2 fixed vectors could not" in headline(
        replace(REPORT, directions=tuple(unjudged))
    )


@pytest.mark.parametrize(
    ("degree", "change", "faint"),
    [(0.09, 0.04, True), (-0.09, 0.04, True), (0.11, 0.04, False), (-1.0, 0.04, False), (0.0, 0.06, False),
     (0.0, None, False)],
)  # fmt: skip
def test_a_scale_that_is_hardly_seen_is_said_to_be(degree, change, faint):
    scale = replace(SEEN, name="scale", kind="scale", finite_change=change)
    said = headline(
        replace(REPORT, directions=(scale, replace(SEEN, finite_change=1.0 - faint)), readout_degree=degree)
    )
    assert said.startswith("VISIBLE") and ("only faintly" in said) == faint


def cells(table):
    """Of an HTML table, row by row."""
    return [re.findall("<t[hd]>(.*?)</t[hd]>", row) for row in re.findall("<tr>(.*?)</tr>", table)]


def test_a_page_has_the_directions_the_losses_and_the_remedies():
    directions, losses, remedies = map(cells, re.findall("<table>.*?</table>", html(REPORT)))
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in WORDS.splitlines() if line.startswith("|")]
    start = next(i for i, line in enumerate(lines) if line[0] == "direction")
    assert directions == [lines[start], *lines[start + 2 : start + 6]]
    assert losses[1:] == [line for line in lines if line[0].startswith(("1 loop", "2 K", "norm clamped"))]
    assert dict(zip(*remedies, strict=True)) == {
        "remedy": "damping",
        "scale then": "blind but contracted",
        "norm it settles at": "15",
        "loss now": "+6.0000 (+5.5000 to +6.2500)",
        "setting": "0.875",
        "effect": "keeps a share",
        "how": "h = 0.875 * h",
    }
    assert html(replace(REPORT, loss=None, remedies=())).count("<table>") == 1


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({}, "active"),
        ({"directions": (MEAN, FAMILY)}, "fine"),
        ({"directions": (SEEN,)}, "fine"),
        ({"directions": (SEEN, FAMILY)}, "invalid"),
        ({"valid": False}, "invalid"),
    ],
)
def test_the_colour_of_a_page_is_that_of_its_verdict(changes, state):
    assert f'<p class="verdict {state}">' in html(replace(REPORT, **changes))


@pytest.fixture
def drawn(monkeypatch):
    """The axes of both figures of a page."""

    def draw(report):
        kept = []
        monkeypatch.setattr(page, "_svg", lambda figure, description: kept.append(figure) or "")
        html(report)
        monkeypatch.undo()
        return [axes for figure in kept for axes in figure.axes]

    return draw


def test_norms_are_drawn_as_run_and_as_predicted(drawn):
    axes, _ = drawn(REPORT)
    found = {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}
    assert found == {
        "run": [[0.0, 20.0], [1.0, 20.5], [2.0, 20.75]],
        "predicted, with bounds": [[6.0, 23.0], [12.0, 27.0]],
        "observed": [[3.0, 21.0], [6.0, 24.0]],
    }
    (band,) = axes.collections
    assert {(6.0, 22.0), (6.0, 26.0), (12.0, 25.0), (12.0, 36.0)} <= set(map(tuple, band.get_paths()[0].vertices))
    axes, _ = drawn(with_growth(forecasts=FORECASTS[:1]))
    assert [line.get_label() for line in axes.get_lines()] == ["run", "observed"] and not axes.collections


def test_every_direction_that_is_a_number_is_drawn_inside_the_axes(drawn):
    strong = replace(SEEN, name="strong", visibility=5e3, activity=200.0)
    nothing = replace(SCALE, name="nothing", visibility=0.0, activity=0.0)
    unknown = [replace(SEEN, visibility=math.inf), replace(SEEN, activity=math.nan)]
    _, axes = drawn(replace(REPORT, directions=(SCALE, SEEN, strong, nothing, *unknown, FAMILY)))
    *points, blind, active = axes.get_lines()
    places = [point.get_xydata()[0].tolist() for point in points]
    assert places == [[3e-15, 0.98], [0.5, 0.5], [5e3, 200.0], [1e-34, 1e-12], [4e-9, 0.75]]
    assert [text.get_text() for text in axes.texts] == ["scale", "seen", "strong", "nothing", "2 fixed vectors"]
    assert [point.get_color() for point in points] == ["#d55e00", "#029e73", "#029e73", "#d55e00", "#0173b2"]
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    assert all(left <= x < right and bottom < y < top for x, y in places)
    assert (blind.get_xdata()[0], active.get_ydata()[0]) == (1e-6, 0.95)
    _, axes = drawn(replace(REPORT, directions=tuple(unknown)))
    assert len(axes.get_lines()) == 2


def test_the_same_report_gives_the_same_page():
    shown = html(REPORT)
    assert shown == html(REPORT)
    assert "<?xml" not in shown and "dc:" not in shown


def test_nothing_of_a_report_is_taken_for_markup():
    odd = '<&">'
    directions = tuple(replace(d, name=odd, verdict="visible") for d in REPORT.directions)
    for changes in (
        {"name": odd},
        {"directions": directions},
        {"remedies": (replace(REPORT.remedies[0], line=odd),)},
        {"notes": (odd,)},
        {"valid": False, "calibration": replace(REPORT.calibration, reason=odd)},
    ):
        shown = html(replace(REPORT, **changes))
        assert "<&" not in shown and "&lt;&amp;" in shown


def test_json_keeps_what_is_no_number():
    assert str(AuditReport.from_json(REPORT.to_json())) == WORDS


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("seconds", True, "expected float"),
        pytest.param("seconds", 10**400, "too large", id="seconds-huge"),
        ("seconds", None, "real number"),
        ("num_loops", 3.0, "expected int"),
        ("num_loops", "3", "expected int"),
        ("name", 5, "expected str"),
        ("notes", "a note", "expected a list"),
        ("calibration", None, "NoneType"),
        ("directions", [{}], "Direction has the fields"),
        ("other", 1, "AuditReport has the fields"),
        ("name", ..., "AuditReport has the fields"),
    ],
)
def test_json_that_is_no_report_is_refused(field, value, reason):
    record = json.loads(REPORT.to_json()) | {field: value}
    record = {name: each for name, each in record.items() if each is not ...}
    with pytest.raises(ValueError, match=f"not the JSON of a AuditReport of this version .*{reason}"):
        AuditReport.from_json(json.dumps(record))


def test_a_word_that_is_none_of_those_known_and_endless_nesting_are_refused():
    for text, reason in (
        (REPORT.to_json().replace('"undecided"', '"unheard of"'), "'unheard of' is none of"),
        ("[" * 100_000, "recursion"),
    ):
        with pytest.raises(ValueError, match=f"not the JSON of a AuditReport of this version .*{reason}"):
            AuditReport.from_json(text)
