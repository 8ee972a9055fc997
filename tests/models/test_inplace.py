"""A product in place is the product: of two dtypes it has the wider one, as everywhere else."""

import pytest
import torch

from models.inplace import times_
from models.norms import Norm


@pytest.mark.parametrize("narrow, wide", [(torch.bfloat16, torch.float32), (torch.float32, torch.float64)])
def test_the_product_has_the_wider_dtype(narrow, wide):
    a, b = torch.tensor([1.0, 3.0], dtype=narrow), torch.tensor([1.0, 1.0 / 3.0], dtype=wide)
    expected, product = a * b, times_(a, b)
    assert product.dtype == expected.dtype == wide and torch.equal(product, expected)
    b, kept = torch.tensor([1.0, 3.0], dtype=wide), torch.tensor([2.0, 0.5], dtype=narrow)
    assert times_(b, kept) is b and torch.equal(b, torch.tensor([2.0, 1.5], dtype=wide))


def test_a_norm_of_narrow_states_with_wide_gains_is_wide():
    norm = Norm("rmsnorm", 4, 1e-6)
    assert norm(torch.ones(2, 4, dtype=torch.bfloat16)).dtype == torch.float32
