"""Dependency arrows: loopsight and models import nothing of ours, theory imports loopsight, experiments all three."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED = {
    "loopsight": set(),
    "models": set(),
    "theory": {"loopsight"},
    "experiments": {"loopsight", "models", "theory"},
}


def imported_packages(source: str) -> set[str]:
    packages = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            packages |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            packages.add("" if node.level else (node.module or "").partition(".")[0])
    return packages


def forbidden(package: str, source: str) -> set[str]:
    return imported_packages(source) & (ALLOWED.keys() - ALLOWED[package] - {package})


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_follow_the_arrows(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    assert {str(f): bad for f in files if (bad := forbidden(package, f.read_text(encoding="utf-8")))} == {}


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("loopsight", "import models"),
        ("loopsight", "def f():\n    from theory.proposition import Proposition"),
        ("models", "from loopsight import radial_gradient_fraction"),
        ("theory", "import models.losses as losses"),
    ],
)
def test_a_forbidden_import_is_found(package, source):
    assert forbidden(package, source)


def test_the_loop_over_k_is_written_once_a_side():
    """Once for our models and once for anybody's maps: the two packages may not import each other.

    `theory` is left out: it sums over sublayers and scales, and its random model unrolls by `loopsight.protocol`.
    """
    looping = [
        path.relative_to(ROOT).as_posix()
        for package in ("experiments", "loopsight", "models")
        for path in sorted((ROOT / package).rglob("*.py"))
        if calls_step_in_a_loop(path.read_text(encoding="utf-8"))
    ]
    assert looping == ["loopsight/protocol.py", "models/looped_lm.py"]


def calls_step_in_a_loop(source: str) -> bool:
    loops = (ast.For, ast.While, ast.ListComp, ast.GeneratorExp)
    return any(
        isinstance(call, ast.Call) and is_a_models_step(call.func)
        for loop in ast.walk(ast.parse(source))
        if isinstance(loop, loops)
        for call in ast.walk(loop)
    )


def is_a_models_step(function: ast.expr) -> bool:
    if isinstance(function, ast.Attribute):
        owner = function.value.id if isinstance(function.value, ast.Name) else ""
        return function.attr == "step" and not owner.startswith("optim")  # an optimiser's step is not a model's
    return isinstance(function, ast.Name) and function.id == "step"


def test_a_second_loop_would_be_found():
    assert calls_step_in_a_loop("for _ in range(4):\n    h = model.step(h)")
    assert calls_step_in_a_loop("while True:\n    states.append(step(states[-1]))")
    assert not calls_step_in_a_loop("for x in data:\n    optimiser.step()")
