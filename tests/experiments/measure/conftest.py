"""Contexts around models whose answer is known: random weights, or a step made by hand."""

import pytest
import torch

from experiments.measure.context import Context
from experiments.measure.validation import held_out_windows
from experiments.training.trainer import build_model
from models import LoopedLM, ModelConfig, ReadoutConfig

CPU = torch.device("cpu")
RAW = ReadoutConfig(kind="raw", gain=False)


@pytest.fixture
def make_context(make_config, synthetic, tmp_path):
    """A context of a variant at initialisation, or of a model given by hand."""

    def make(variant: str = "scale_invariant", model: LoopedLM | None = None, windows: int = 12) -> Context:
        config = make_config(variant)
        held_out = held_out_windows(synthetic.validation, config.model.context, windows)
        return Context(
            folder=tmp_path,
            config=config,
            model=(build_model(config, CPU) if model is None else model).eval(),
            corpus=synthetic,
            windows=held_out,
            exact_windows=held_out[:2, :9],
        )

    return make


class Planted(LoopedLM):
    """The tiny model with a step of its own: h -> move(h), from embeddings of Euclidean norm 7."""

    def __init__(self, move, *, raw: bool = False) -> None:
        torch.manual_seed(0)
        readout = RAW if raw else ReadoutConfig()
        super().__init__(
            ModelConfig(d_model=32, num_layers=1, num_heads=2, vocab_size=256, context=32, readout=readout)
        )
        self.move = move

    def embed(self, tokens):
        h = self.token_embedding(tokens)
        return 7.0 * h / h.norm(dim=-1, keepdim=True)

    def step(self, h):
        return self.move(h)


@pytest.fixture
def planted():
    return Planted
