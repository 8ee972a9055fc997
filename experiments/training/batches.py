"""Which tokens each step trains on: a pure function of the step, so that a resumed run needs no reader state."""

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor


class Windows:
    """Overlapping windows of a token array, shuffled anew every epoch (the paper: length 256, stride 128).

    Args:
        tokens: (n,) token ids, for example a memory map.
        context: inputs per window; a window also needs the one token after them.
        stride: distance between the starts of neighbouring windows.
        batch_size: windows a batch.
        seed: of the shuffles.
        device: where the batches go. The token array is put there whole, once.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        *,
        context: int,
        stride: int,
        batch_size: int,
        seed: int,
        device: torch.device,
    ) -> None:
        if len(tokens) < context + 1:
            raise ValueError(f"{len(tokens)} tokens do not fill one window of {context} + 1.")
        self.tokens = torch.from_numpy(np.asarray(tokens).astype(np.int64)).to(device)
        self.starts = np.arange(0, len(tokens) - context, stride)
        self.offsets = torch.arange(context + 1, device=device)
        self.batch_size = batch_size
        self.seed = seed
        self._shuffled: tuple[int, np.ndarray] | None = None

    def batch(self, step: int) -> tuple[Int[Tensor, "batch time"], Int[Tensor, "batch time"]]:
        """Inputs and next-token targets of step 0, 1, ..., each (batch, context), int64."""
        first = step * self.batch_size
        picks = [self._start(index) for index in range(first, first + self.batch_size)]
        starts = torch.from_numpy(np.array(picks))
        if self.tokens.is_cuda:  # from pinned memory, so that the copy does not wait for the GPU
            starts = starts.pin_memory().to(self.tokens.device, non_blocking=True)
        windows = self.tokens[starts[:, None] + self.offsets]
        return windows[:, :-1], windows[:, 1:]

    def _start(self, index: int) -> int:
        epoch, position = divmod(index, len(self.starts))
        if self._shuffled is None or self._shuffled[0] != epoch:
            generator = np.random.default_rng((self.seed, epoch))
            self._shuffled = (epoch, generator.permutation(self.starts))
        return int(self._shuffled[1][position])
