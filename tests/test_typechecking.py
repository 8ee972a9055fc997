"""Types are checked at every call of a test: of arguments, of results, and of functions inside functions."""

import pytest
import torch
from jaxtyping import Float, TypeCheckError, jaxtyped
from torch import Tensor
from typechecking import checked

from models.norms import rms_normalise


@jaxtyped(typechecker=checked)
def first_of(x: Float[Tensor, "n d"], *, taken: int) -> Float[Tensor, " d"]:
    return x[0, :taken]


def inner(annotation, default=0):
    @jaxtyped(typechecker=checked)
    def give(x: annotation, y: annotation = default) -> annotation:
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


def test_functions_of_one_name_are_told_apart():
    assert inner(int)(1) == 1 and inner(str, "")("a") == "a"
    with pytest.raises(TypeCheckError):
        inner(int)("a")
    with pytest.raises(TypeCheckError):
        inner(str, "")(1)


def test_a_default_that_cannot_be_hashed_is_no_obstacle():
    assert inner(list, [])([1]) == [1]
    with pytest.raises(TypeCheckError):
        inner(list, [])(1)
