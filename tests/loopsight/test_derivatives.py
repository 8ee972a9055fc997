"""What is computed for many directions at once is what each of them gives by itself."""

import pytest
import torch

from loopsight.derivatives import HELD_ENTRIES, for_each

ROWS = torch.linspace(-2.0, 2.0, 15, dtype=torch.float64).view(5, 3)


def smooth(row):
    return row.sin(), row.square().sum()


def branching(row):
    """As vmap cannot: on a value."""
    return (row.sin() if row.sum().item() > 0 else row.cos()), row.square().sum()


@pytest.mark.parametrize("held", [1, HELD_ENTRIES // 2, HELD_ENTRIES, 3 * HELD_ENTRIES])
@pytest.mark.parametrize("function", [smooth, branching])
def test_every_row_gives_what_it_gives_alone(function, held):
    found = for_each(function, ROWS, held=held)
    expected = [torch.stack(results) for results in zip(*map(function, ROWS), strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)) and len(found) == 2


@pytest.mark.parametrize(
    ("function", "held", "calls"),
    [(smooth, 1, 1), (smooth, HELD_ENTRIES // 2, 3), (smooth, 3 * HELD_ENTRIES, 5), (branching, 1, 1 + 5)],
)
def test_a_call_is_for_as_many_rows_as_vmap_and_memory_allow(function, held, calls):
    seen = []

    def watched(row):
        seen.append(row)
        return function(row)

    for_each(watched, ROWS, held=held)
    assert len(seen) == calls


def test_what_the_function_itself_raises_is_raised():
    def fails(row):
        raise ZeroDivisionError("its own")

    with pytest.raises(ZeroDivisionError, match="its own"):
        for_each(fails, ROWS)
