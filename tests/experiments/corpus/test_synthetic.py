"""The synthetic source: the same bits everywhere, and the entropy it says it has."""

import hashlib
import math

import numpy as np
import pytest

from experiments.corpus.synthetic import MarkovSource

DEFAULT = MarkovSource()


def empirical_conditional_entropy(tokens: np.ndarray, vocab_size: int) -> float:
    """Plug-in estimate in nats; biased down by about (non-zero cells - states) / (2 tokens)."""
    pairs = np.bincount(tokens[:-1].astype(np.int64) * vocab_size + tokens[1:], minlength=vocab_size**2)
    joint = pairs.reshape(vocab_size, vocab_size) / pairs.sum()
    given = joint / joint.sum(axis=1, keepdims=True)
    seen = joint > 0
    return float(-(joint[seen] * np.log(given[seen])).sum())


def transition_matrix(source: MarkovSource) -> np.ndarray:
    matrix = np.zeros((source.vocab_size, source.vocab_size))
    for state, row in enumerate(source.successors):
        for successor, weight in zip(row, source.weights, strict=True):
            matrix[state, successor] += weight / 2**16
    return matrix


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (DEFAULT, "6e9a8d0999139ea94cf4c6581b1bf190af39bcb7a196f7e6076311ff936c7155"),
        (
            MarkovSource(vocab_size=17, branching=3, seed=2**32 - 1),
            "e6c3a4be0ab4a52cc773dfd16b75217daf7adc9df9a77199ab3e767907248911",
        ),
    ],
)
def test_tokens_are_the_same_bits_on_every_machine(source: MarkovSource, expected: str) -> None:
    assert hashlib.sha256(source.tokens(100_000).astype("<u2").tobytes()).hexdigest() == expected


def test_a_longer_walk_begins_with_the_shorter_one_and_another_seed_differs() -> None:
    assert np.array_equal(DEFAULT.tokens(1000)[:100], DEFAULT.tokens(100))
    assert not np.array_equal(DEFAULT.tokens(100), MarkovSource(seed=1).tokens(100))


@pytest.mark.parametrize("branching", [1, 2, 3, 8, 30])
def test_weights_fall_and_sum_to_a_power_of_two(branching: int) -> None:
    weights = MarkovSource(branching=branching).weights
    assert sum(weights) == 2**16
    assert list(weights) == sorted(weights, reverse=True)
    ideal = [2**16 / j / sum(1 / i for i in range(1, branching + 1)) for j in range(1, branching + 1)]
    assert max(abs(w - x) for w, x in zip(weights, ideal, strict=True)) <= branching


@pytest.mark.parametrize(
    "source", [DEFAULT, MarkovSource(vocab_size=8, seed=3), MarkovSource(vocab_size=50, branching=1)]
)
def test_floor_is_the_entropy_of_every_row_of_the_transition_matrix(source: MarkovSource) -> None:
    matrix = transition_matrix(source)
    entropies = [-math.fsum(p * math.log(p) for p in row if p > 0) for row in matrix]
    assert entropies == pytest.approx([source.entropy_floor] * source.vocab_size, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_every_token_is_reached_and_all_are_equally_frequent_in_the_long_run(seed: int) -> None:
    matrix = transition_matrix(MarkovSource(seed=seed))
    assert np.linalg.matrix_power(matrix, 200) == pytest.approx(np.full_like(matrix, 1 / 256), abs=1e-9)


def test_tokens_have_the_conditional_entropy_of_the_floor_and_shuffled_ones_do_not() -> None:
    tokens = DEFAULT.tokens(2**19)
    bias = 256 * 7 / (2 * tokens.size)
    assert empirical_conditional_entropy(tokens, 256) == pytest.approx(DEFAULT.entropy_floor - bias, abs=0.005)
    shuffled = np.random.RandomState(0).permutation(tokens)
    assert empirical_conditional_entropy(shuffled, 256) > DEFAULT.entropy_floor + 3


@pytest.mark.parametrize(
    "arguments",
    [{"branching": 0}, {"vocab_size": 7}, {"vocab_size": 2**16 + 1}, {"seed": -1}, {"seed": 2**32}],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="need "):
        MarkovSource(**arguments)
