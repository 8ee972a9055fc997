"""What is computed for many directions at once is what each of them gives by itself."""

import pytest
import torch

from loopsight.derivatives import for_each

ROWS = torch.linspace(-2.0, 2.0, 15, dtype=torch.float64).view(5, 3)


def smooth(row):
    return row.sin(), row.square().sum()


def branching(row):
    """As vmap cannot: on a value."""
    return (row.sin() if row.sum().item() > 0 else row.cos()), row.square().sum()


@pytest.mark.parametrize("together", [None, 1, 2, 5, 50])
@pytest.mark.parametrize("function", [smooth, branching])
def test_every_row_gives_what_it_gives_alone(function, together):
    found = for_each(function, ROWS, together=together)
    expected = [torch.stack(results) for results in zip(*map(function, ROWS), strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)) and len(found) == 2


@pytest.mark.parametrize(
    ("function", "together", "calls"), [(smooth, None, 1), (smooth, 2, 3), (smooth, 1, 5), (branching, None, 1 + 5)]
)
def test_a_call_is_for_many_rows_where_vmap_can(function, together, calls):
    seen = []

    def watched(row):
        seen.append(row)
        return function(row)

    for_each(watched, ROWS, together=together)
    assert len(seen) == calls


def test_what_the_function_itself_raises_is_raised():
    def fails(row):
        raise ZeroDivisionError("its own")

    with pytest.raises(ZeroDivisionError, match="its own"):
        for_each(fails, ROWS)
