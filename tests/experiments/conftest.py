"""Small runs for the tests: the tiny preset on the synthetic corpus, one thread."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from commands import own_arithmetic

from experiments.config import RunConfig, TrainingConfig, resolve
from experiments.corpus import CorpusConfig, TokenCorpus, prepare
from experiments.training.trainer import Execution

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory) -> TokenCorpus:
    config = CorpusConfig(data="synthetic", vocab_size=256)
    return prepare(config, tmp_path_factory.mktemp("cache"), min_tokens=33)


@pytest.fixture
def make_config(synthetic):
    def make(variant: str = "scale_invariant", seed: int = 0, **training: object) -> RunConfig:
        return resolve(
            variant=variant,
            preset="tiny",
            seed=seed,
            training=TrainingConfig(**({"steps": 12, "batch_size": 4} | training)),
            corpus=CorpusConfig(data="synthetic", vocab_size=256),
            tokens=synthetic,
        )

    return make


@pytest.fixture(scope="module")
def undrawn() -> Iterator[None]:
    """Runs without figures, which take as long to draw as all else of such a run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("experiments.figures.draw_run", lambda *_: None)
        yield


@pytest.fixture
def execution() -> Execution:
    return Execution(device=CPU, checkpoint_every=5, log_every=2)


@pytest.fixture
def readme() -> Path:
    return Path(__file__).parents[2] / "README.md"


@pytest.fixture(autouse=True)
def arithmetic_of_its_own() -> Iterator[None]:
    with own_arithmetic():
        yield
