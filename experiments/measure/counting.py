"""What counting alone predicts: cross-entropies of unigrams and bigrams of the very tokens a run was trained on.

    p(w | u) = (c(u, w) + t(u) p(w)) / (c(u) + t(u)),    p(w) = (c(w) + 1) / (n + vocab)

t(u) is how many different words follow u (Witten and Bell, IEEE Transactions on Information Theory 37(4), 1991).
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Counting:
    """Cross-entropies on held-out tokens, nats a token, of tables made of `tokens` training tokens."""

    tokens: int
    unigram: float
    bigram: float


def counting(
    batches: Iterable[tuple[Int[Tensor, "batch time"], Int[Tensor, "batch time"]]],
    windows: Int[Tensor, "windows length"],
    vocab_size: int,
) -> Counting:
    """Count the inputs and targets of training, and predict every token of held-out windows but each one's first."""
    pairs = [(inputs.numpy().ravel(), targets.numpy().ravel()) for inputs, targets in batches]
    before, after = (np.concatenate(part) for part in zip(*pairs, strict=True))
    words = (np.bincount(after, minlength=vocab_size) + 1.0) / (len(after) + vocab_size)
    seen, count = np.unique(before.astype(np.int64) * vocab_size + after, return_counts=True)
    followed, followers = (
        np.bincount(before, minlength=vocab_size),
        np.bincount(seen // vocab_size, minlength=vocab_size),
    )

    u, w = windows[:, :-1].numpy().ravel(), windows[:, 1:].numpy().ravel()
    wanted = u.astype(np.int64) * vocab_size + w
    place = np.searchsorted(seen, wanted).clip(max=len(seen) - 1)
    together = np.where(seen[place] == wanted, count[place], 0)
    weight = np.maximum(followers[u], 1)  # a word that was never followed by any tells nothing: the unigram
    bigram = (together + weight * words[w]) / (followed[u] + weight)
    return Counting(
        tokens=len(after),
        unigram=float(-np.log(words[w]).mean()),
        bigram=float(-np.log(bigram).mean()),
    )
