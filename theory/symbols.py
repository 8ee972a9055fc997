"""Shared SymPy vocabulary: states of symbolic dimension, and the two facts about finite sums that proofs need."""

import sympy as sp

d = sp.Symbol("d", integer=True, positive=True)
"""Dimension of the state."""
i, j, k = sp.symbols("i j k", integer=True, positive=True)
"""Indices in 1..d; proofs use distinct ones for nested sums."""
h = sp.IndexedBase("h", real=True)
"""A state, h[1], ..., h[d]."""
c = sp.Symbol("c", positive=True)
"""A factor by which a state is rescaled."""
t = sp.Symbol("t", real=True)
"""A shift along the vector of ones."""
eps = sp.Symbol("epsilon", nonnegative=True)
"""The normalisation's epsilon, inside the root."""


def total(term: sp.Expr, index: sp.Symbol = i) -> sp.Sum:
    """Sum of `term` over index = 1..d."""
    return sp.Sum(term, (index, 1, d))


def split(expression: sp.Expr) -> sp.Expr:
    """Use linearity of every sum: split it over added terms and pull out factors free of its index."""
    return expression.replace(lambda e: isinstance(e, sp.Sum), _split_sum)


def _split_sum(series: sp.Sum) -> sp.Expr:
    (limits,) = series.limits
    index, low, high = limits
    result = sp.Integer(0)
    for term in sp.Add.make_args(sp.expand(series.function)):
        factor, rest = term.as_independent(index, as_Add=False)
        result += factor * ((high - low + 1) if rest == 1 else sp.Sum(rest, limits))
    return result
