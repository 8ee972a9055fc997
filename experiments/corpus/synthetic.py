"""A token source whose best possible loss is known: a Markov chain with a closed-form entropy.

State i is followed by P[(i + o_j) mod V] with probability w_j / 2^16, j = 1..B, where P is a seeded
permutation of the V tokens, the o_j are seeded distinct offsets and w_j is nearly proportional to 1/j. Every
state has the same weights, so the conditional entropy, -sum_j (w_j / 2^16) log(w_j / 2^16), does not depend
on the state: no model can have a lower expected loss than `entropy_floor` at a position that sees the token
before it. For each j, i -> P[(i + o_j) mod V] is a bijection, so the chain is doubly stochastic and, as long
as every token can be reached, tokens are uniform in the long run: a model that ignores its context cannot get
below log V.

The tokens are the same on every machine: the only randomness is 32-bit words of numpy.random.RandomState,
whose stream is frozen (NEP 19), and all that follows is integer arithmetic.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np
from jaxtyping import Int64, UInt16, UInt32

_WEIGHT_BITS = 16


@dataclass(frozen=True, kw_only=True)
class MarkovSource:
    """The chain.

    Args:
        vocab_size: number of tokens V, at most 65,536.
        branching: number of successors B of every token, at most V.
        seed: of the permutation, the offsets and the walk; 0 to 2^32 - 1.

    Raises:
        ValueError: an argument is out of its range.
    """

    vocab_size: int = 256
    branching: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.branching <= self.vocab_size <= 2**16:
            raise ValueError(f"need 1 <= branching <= vocab_size <= 65536, got {self.branching}, {self.vocab_size}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"need 0 <= seed < 2**32, got {self.seed}")

    @property
    def entropy_floor(self) -> float:
        """Entropy of the next token given the one before it, in nats; 0 with one successor."""
        total = 2**_WEIGHT_BITS
        return -math.fsum(w / total * math.log(w / total) for w in self.weights)

    @cached_property
    def weights(self) -> tuple[int, ...]:
        """Falling integers, nearly proportional to 1/j, with sum 2^16; rounding goes to the first."""
        common = math.lcm(*range(1, self.branching + 1))
        shares = [common // j for j in range(1, self.branching + 1)]
        rounded = [2**_WEIGHT_BITS * share // sum(shares) for share in shares]
        return (rounded[0] + 2**_WEIGHT_BITS - sum(rounded), *rounded[1:])

    @cached_property
    def successors(self) -> Int64[np.ndarray, "vocab branching"]:
        """successors[i, j] follows token i with probability weights[j] / 2^16."""
        words = _random_words(self.seed, 2 * self.vocab_size)
        # A stable sort of the words is a permutation that depends on them alone, not on a library's shuffle.
        permutation, offsets = words.reshape(2, -1).argsort(axis=1, kind="stable").astype(np.int64)
        states = np.arange(self.vocab_size, dtype=np.int64)
        return permutation[(states[:, None] + offsets[None, : self.branching]) % self.vocab_size]

    def tokens(self, count: int) -> UInt16[np.ndarray, " count"]:
        """The first `count` tokens of the walk; a longer walk begins with a shorter one."""
        return np.fromiter(self._walk(count), dtype=np.uint16, count=count)

    def _walk(self, count: int) -> Iterator[int]:
        words = _random_words(self.seed, 2 * self.vocab_size + count)[2 * self.vocab_size :]
        draws = words >> np.uint32(32 - _WEIGHT_BITS)
        ranks = np.searchsorted(list(accumulate(self.weights)), draws, side="right")
        table = self.successors.tolist()
        state = 0
        for rank in ranks.tolist():
            state = table[state][rank]
            yield state


def _random_words(seed: int, count: int) -> UInt32[np.ndarray, " count"]:
    return np.random.RandomState(seed).randint(0, 2**32, size=count, dtype=np.uint32)
