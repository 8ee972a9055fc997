"""Types are checked at every call of a test: of arguments, of results, and of functions inside functions."""

import re
from pathlib import Path

import pytest
import torch
from jaxtyping import Float, TypeCheckError, jaxtyped
from torch import Tensor
from typechecking import CHECKERS, checked

from models.norms import rms_normalise


@jaxtyped(typechecker=checked)
def first_of(x: Float[Tensor, "n d"], *, taken: int) -> Float[Tensor, " d"]:
    return x[0, :taken]


@jaxtyped(typechecker=checked)
def spoil(values: list[int]) -> None:
    values[:] = ["a"]


def inner(annotation, default=None):
    @jaxtyped(typechecker=checked)
    def give(x: annotation, y: object = default) -> annotation:
        return x

    return give


def test_the_packages_are_checked():
    with pytest.raises(TypeCheckError):
        rms_normalise("a string", 1e-6)


def test_a_wrong_argument_is_refused_before_the_call():
    with pytest.raises(TypeCheckError, match="the parameters of"):
        first_of(torch.ones(3), taken=3)
    with pytest.raises(TypeCheckError, match="parameter 'taken'"):
        first_of(torch.ones(2, 3), taken="3")


def test_a_result_is_held_to_the_sizes_of_the_arguments():
    assert first_of(torch.ones(2, 3), taken=3).shape == (3,)
    with pytest.raises(TypeCheckError, match="the return value of"):
        first_of(torch.ones(2, 3), taken=2)


def test_an_argument_that_the_call_spoils_is_refused_behind_it():
    with pytest.raises(TypeCheckError, match="the return value of"):
        spoil([1])


METHODS = "resize resize_as set squeeze unsqueeze t transpose swapaxes swapdims as_strided".split()
RESHAPES_IN_PLACE = re.compile(rf"\.({'|'.join(METHODS)})_\(|\.data\s*=[^=]")


@pytest.mark.parametrize("text", ["x.resize_(7)", "x.data = y", "x.unsqueeze_(0)"])
def test_what_gives_a_tensor_another_shape_is_recognised(text):
    assert RESHAPES_IN_PLACE.search(text)


def test_no_call_gives_a_tensor_another_shape():
    """So that its argument need not be looked at again behind it."""
    root = Path(__file__).parents[1]
    packages = ("loopsight", "models", "theory", "experiments")
    files = [path for package in packages for path in (root / package).rglob("*.py")]
    assert len(files) > 100
    assert [str(path) for path in files if RESHAPES_IN_PLACE.search(path.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize(
    ("one", "good", "other", "bad"),
    [
        (lambda: int, 1, lambda: str, "a"),
        (lambda: Float[Tensor, "n d"], torch.ones(2, 3), lambda: Float[Tensor, " n"], torch.ones(2)),
        (
            lambda: tuple[Float[Tensor, "n d"]],
            (torch.ones(2, 3),),
            lambda: tuple[Float[Tensor, " n"]],
            (torch.ones(2),),
        ),
    ],
)
def test_functions_of_one_name_are_told_apart_and_equal_ones_are_not(one, good, other, bad):
    assert inner(one())(good) is good
    made = len(CHECKERS)
    assert inner(one())(good) is good and len(CHECKERS) == made
    assert inner(other())(bad) is bad and len(CHECKERS) > made
    with pytest.raises(TypeCheckError):
        inner(one())(bad)


def test_defaults_make_no_further_checkers():
    inner(int, [])
    made = len(CHECKERS)
    assert inner(int, [1])(1) == inner(int, torch.ones(2))(1) == 1
    assert len(CHECKERS) == made
