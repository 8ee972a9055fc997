"""Types are checked at the first calls of a test: of arguments, of results, and of functions inside functions."""

import functools

import pytest
import torch
import typechecking
from beartype import beartype
from jaxtyping import Float, TypeCheckError
from torch import Tensor
from typechecking import CALLS, CALLS_INSIDE, first_calls

from models import LoopedLM
from models.norms import rms_normalise

decorated = functools.partial(first_calls, typechecker=beartype)


@decorated
def first_of(x: Float[Tensor, "n d"], *, taken: int) -> Float[Tensor, " d"]:
    return x[0, :taken]


def outer(number, annotation):
    @decorated
    def inner(x: annotation) -> annotation:
        return x

    return inner(number)


def test_the_packages_are_checked_so_often_and_no_more():
    for _ in range(CALLS):
        with pytest.raises(TypeCheckError, match="parameters of models.norms.rms_normalise"):
            rms_normalise("a string", 1e-6)
    with pytest.raises(TypeCheckError, match="parameters of models.norms._inverse_rms"):  # which it calls
        rms_normalise("a string", 1e-6)
    with pytest.raises(TypeCheckError):
        LoopedLM("a string")


def test_a_wrong_argument_is_refused_before_the_call():
    with pytest.raises(TypeCheckError, match="the parameters of"):
        first_of(torch.ones(3), taken=3)
    with pytest.raises(TypeCheckError, match="parameter 'taken'"):
        first_of(torch.ones(2, 3), taken="3")


def test_a_result_is_held_to_the_sizes_of_the_arguments():
    assert first_of(torch.ones(2, 3), taken=3).shape == (3,)
    with pytest.raises(TypeCheckError, match="the return value of"):
        first_of(torch.ones(2, 3), taken=2)


@pytest.mark.parametrize("once_more", [False, True])
def test_every_test_begins_again(once_more):
    """And within one, only so many calls are checked: of two tests that use them all, both meet a check."""
    for _ in range(CALLS):
        with pytest.raises(TypeCheckError):
            first_of(torch.ones(2, 3), taken=2)
    assert first_of(torch.ones(2, 3), taken=2).shape == (2,)
    typechecking.start_again()
    with pytest.raises(TypeCheckError):
        first_of(torch.ones(2, 3), taken=2)


def test_a_function_made_anew_at_every_call_is_counted_as_one_and_checked_by_its_own_annotations():
    for _ in range(CALLS_INSIDE):
        assert outer("a", str) == "a"
    assert outer("a", int) == "a"
    typechecking.start_again()
    with pytest.raises(TypeCheckError):
        outer("a", int)
