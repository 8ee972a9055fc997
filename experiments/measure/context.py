"""What every measurement of a run starts from: its model, its held-out tokens, and the passes they share."""

import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Int
from safetensors import SafetensorError, safe_open
from torch import Tensor

from experiments.config import RunConfig
from experiments.corpus import TokenCorpus, prepare
from experiments.errors import RunError, UsageError
from experiments.measure.forward import HeldOut, held_out_pass
from experiments.measure.state import STATE_TOKENS, STATE_WINDOWS
from experiments.measure.validation import VALIDATION_WINDOWS, held_out_windows
from experiments.runs import load_model, read_config, require_checkpoint
from models import LoopedLM

FAR_LOOPS = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class Context:
    """A finished run, ready to be measured. The lazy parts are computed once, by whoever asks first.

    Attributes:
        folder: of the run.
        config: of the run.
        model: as trained, float32, in evaluation mode.
        corpus: the tokens it was trained on, and those held out.
        windows: held-out windows of context + 1 ids, on the model's device; `windows[:, :-1]` are inputs.
        exact_windows: a few shorter windows for what is measured in float64.
    """

    folder: Path
    config: RunConfig
    model: LoopedLM
    corpus: TokenCorpus
    windows: Int[Tensor, "windows length"]
    exact_windows: Int[Tensor, "few short"]

    @property
    def trained_loops(self) -> int:
        """K."""
        return self.config.model.num_loops

    @cached_property
    def held_out(self) -> HeldOut:
        """The one validation pass: loops 1..2K on `windows`.

        Raises:
            RunError: a trained loop's losses are not finite.
        """
        found = held_out_pass(self.model, self.windows, num_loops=2 * self.trained_loops, last_loop=self.trained_loops)
        if not found.cross_entropy[: self.trained_loops].isfinite().all():
            raise RunError(f"the model of {self.folder} gives NaN or infinite losses, so it cannot be measured.")
        return found

    @cached_property
    def exact(self) -> LoopedLM:
        """A float64 copy of the model."""
        return copy.deepcopy(self.model).double().eval()

    @cached_property
    def exact_states(self) -> tuple[Tensor, ...]:
        """(h_0, ..., h_64) of `exact_windows`' inputs, float64, each (windows, time, d), without gradient."""
        with torch.no_grad():
            return self.exact(self.exact_windows[:, :-1], FAR_LOOPS)


def open_run(folder: Path, cache: Path, device: torch.device, corpus: TokenCorpus | None = None) -> Context:
    """Read a run's folder and make its tokens again.

    Args:
        folder: of a finished run.
        cache: folder of prepared corpora.
        device: where to measure.
        corpus: its corpus where the caller has it at hand, so that it need not be read again.

    Raises:
        RunError: the folder is unfinished, damaged, of another version, or of a corpus that this machine has not.
    """
    config = read_config(folder)
    model = load_model(folder).to(device)
    corpus = _require_same(folder, config, _prepared(folder, config, cache) if corpus is None else corpus)
    windows = held_out_windows(corpus.validation, config.model.context, VALIDATION_WINDOWS).to(device)
    return Context(
        folder=folder,
        config=config,
        model=model,
        corpus=corpus,
        windows=windows,
        exact_windows=windows[:STATE_WINDOWS, : STATE_TOKENS + 1],
    )


def checkpoint_digest(folder: Path) -> str:
    """Digest that the run's checkpoint carries: measurements of another one are not its own.

    Raises:
        RunError: there is no readable checkpoint.
    """
    path = require_checkpoint(folder)
    try:
        with safe_open(path, framework="pt") as file:
            return str((file.metadata() or {}).get("sha256"))
    except (SafetensorError, OSError) as error:
        raise RunError(f"cannot read the checkpoint {path} ({error}); delete {folder} to train it again.") from error


def _prepared(folder: Path, config: RunConfig, cache: Path) -> TokenCorpus:
    try:
        return prepare(config.corpus, cache, min_tokens=config.model.context + 1)
    except UsageError as error:
        raise RunError(f"{folder} cannot be measured without its corpus: {error}") from error


def _require_same(folder: Path, config: RunConfig, corpus: TokenCorpus) -> TokenCorpus:
    if corpus.key != config.corpus_key:
        raise RunError(
            f"{folder} was trained on other tokens than {config.corpus.data} gives on this machine (corpus key "
            f"{config.corpus_key}, here {corpus.key}); measure it where it was trained, or train it again here."
        )
    return corpus
