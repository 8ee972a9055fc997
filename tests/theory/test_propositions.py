"""Every proposition: its proof, its numeric check on random cases, and its control, which must fail."""

import importlib
import json
import math
import pkgutil
import re
from pathlib import Path

import pytest
import sympy as sp
from hypothesis import given
from hypothesis import strategies as st

import theory.propositions
from theory.cases import Case
from theory.proposition import Proof, ProofError, Residual, by_key, least, propositions, worst

PROPOSITIONS = propositions()
NOTEBOOKS = "\n".join(
    "".join(cell["source"])
    for path in Path(__file__).parents[2].glob("proofs_notebooks/*.ipynb")
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
)
FILES = [info.name for info in pkgutil.iter_modules(theory.propositions.__path__)]

cases = st.builds(
    Case,
    seed=st.integers(0, 2**31),
    d=st.integers(3, 48),
    vocab=st.integers(2, 40),
    tokens=st.integers(1, 6),
    scale=st.floats(-3, 6).map(lambda exponent: 10.0**exponent),
    spread=st.floats(0, 3).map(lambda exponent: 10.0**exponent),
    loss=st.sampled_from(["cross_entropy", "squared", "z_loss", "margin"]),
)


@pytest.mark.parametrize("key", PROPOSITIONS)
def test_proof(key):
    proof = PROPOSITIONS[key].prove()
    assert proof.steps
    assert str(proof).lstrip().startswith("1. ") and proof._repr_latex_().startswith("$$")


@pytest.mark.parametrize("key", PROPOSITIONS)
@given(case=cases)
def test_numeric_check(key, case):
    residual = PROPOSITIONS[key].check(case)
    assert residual.holds, residual


@pytest.mark.parametrize("key", PROPOSITIONS)
@pytest.mark.parametrize("seed", range(5))
def test_control_fails(key, seed):
    proposition = PROPOSITIONS[key]
    residual = proposition.control(Case(seed=seed))
    assert not residual.holds
    assert residual.value > proposition.control_floor > 1e3 * residual.tolerance


@pytest.mark.parametrize("key", PROPOSITIONS)
def test_statement_is_complete(key):
    proposition = PROPOSITIONS[key]
    assert proposition.key == key
    assert re.fullmatch(r"[A-Z].{40,250}\.", proposition.words), "one sentence in plain words"
    assert "\\" not in proposition.words and "|" not in proposition.words.replace("|h|", "")
    assert proposition.title and proposition.statement and proposition.hypotheses and proposition.source


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_called_by_its_key(name):
    """P17 is the one of p17_*.py."""
    number = re.fullmatch(r"p(\d\d)_\w+", name)
    assert number, f"theory/propositions/{name}.py must be called pNN_what_it_says.py"
    assert importlib.import_module(f"theory.propositions.{name}").PROPOSITION.key == f"P{int(number[1])}"


@pytest.mark.parametrize("name", FILES)
def test_a_file_has_a_test_file(name):
    number = name.partition("_")[0]
    found = list(Path(__file__).parent.glob(f"test_{number}_*.py"))
    assert found, f"add tests/theory/test_{name}.py: wrong forms of {name} that its check must tell from the right one"


@pytest.mark.parametrize("key", PROPOSITIONS)
def test_a_notebook_names_it(key):
    assert re.search(rf"\b{key}\b", NOTEBOOKS), f"name {key} in one of proofs_notebooks/"


def test_a_second_proposition_of_a_key_is_refused():
    p1, p2 = (PROPOSITIONS[key] for key in ("P1", "P2"))
    assert list(by_key([p2, p1])) == ["P2", "P1"]
    with pytest.raises(ValueError, match="two propositions are called P1"):
        by_key([p1, p2, p1])


def test_a_file_without_a_proposition_is_named(tmp_path, monkeypatch):
    (tmp_path / "p99_helper.py").write_text("VALUE = 1\n")
    monkeypatch.setattr(theory.propositions, "__path__", [str(tmp_path)])
    with pytest.raises(TypeError, match=r"theory/propositions/p99_helper\.py makes no PROPOSITION"):
        propositions()


def test_a_wrong_identity_is_rejected():
    x = sp.Symbol("x", positive=True)
    with pytest.raises(ProofError, match="the difference is"):
        Proof().equal("wrong", sp.sqrt(x**2), 2 * x)
    with pytest.raises(ProofError, match="not decided"):
        Proof().true("unknown sign", sp.Symbol("y", real=True) > 0)


def test_a_residual_that_measured_nothing_does_not_hold():
    assert not Residual(value=math.nan, tolerance=1.0).holds


@pytest.mark.parametrize("values", [(math.nan, 1.0), (1.0, math.nan), (0.0, math.nan, 2.0)])
def test_nothing_measured_is_not_forgotten_beside_other_numbers(values):
    """max(1.0, nan) is 1.0: a residual that measured nothing would pass unseen."""
    assert math.isnan(worst(values)) and math.isnan(least(values))
    assert worst([3.0, -1.0]) == 3.0 and least([3.0, -1.0]) == -1.0
