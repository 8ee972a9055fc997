"""Unigram and bigram baselines, by hand and on a source whose entropy is known."""

import math

import pytest
import torch

from experiments.measure.counting import counting
from experiments.measure.validation import held_out_windows


def test_by_hand():
    """Words 0, 1, 2 of 3; 0 is followed by 1, 1, 2; 1 by 0; 2 by nothing."""
    batches = [(torch.tensor([[0, 1]]), torch.tensor([[1, 0]])), (torch.tensor([[0, 0]]), torch.tensor([[1, 2]]))]
    p = {0: 2 / 7, 1: 3 / 7, 2: 2 / 7}
    found = counting(batches, torch.tensor([[0, 1, 2, 0]]), 3)
    assert found.tokens == 4
    assert found.unigram == pytest.approx(-(math.log(p[1]) + math.log(p[2]) + math.log(p[0])) / 3)
    bigrams = (2 + 2 * p[1]) / (3 + 2), (0 + 1 * p[2]) / (1 + 1), p[0]
    assert found.bigram == pytest.approx(-sum(map(math.log, bigrams)) / 3)


def test_pairs_come_near_the_entropy_of_a_source_that_looks_one_word_back_and_words_do_not(synthetic):
    windows = held_out_windows(synthetic.validation, 32, 64)
    train = torch.from_numpy(synthetic.train[:200_001].astype("int64"))
    found = counting([(train[None, :-1], train[None, 1:])], windows, synthetic.vocab_size)
    floor = synthetic.record["entropy_floor_nats"]
    assert floor - 0.05 < found.bigram < floor + 0.4
    assert found.unigram > floor + 1.0
