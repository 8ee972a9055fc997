"""Summaries of runs that nobody made, for what compares runs."""

from typing import Any

from experiments.config import RunConfig, TrainingConfig, weighted
from experiments.corpus import CorpusConfig
from experiments.grids.design import Setting
from experiments.variants import find
from models import PRESETS, resized


def summary_of(variant: str, setting: Setting, seed: int, norm: float, loss: float = 3.0) -> dict[str, Any]:
    """A run of the cpu preset with 200 steps; norm and loss are the last loop's, 1 and 9 those of the others."""
    size = resized(
        PRESETS["cpu"],
        d_model=setting.d_model,
        num_layers=setting.num_layers,
        embedding_multiplier=setting.embedding_multiplier,
    )
    weights = tuple(map(float, setting.loop_weights.split())) if setting.loop_weights != "equal" else None
    config = RunConfig(
        variant=variant,
        preset="cpu",
        seed=seed,
        model=find(variant).model_config(size),
        supervision=weighted(find(variant).supervision, weights),
        training=TrainingConfig(
            steps=200,
            batch_size=4,
            learning_rate=setting.learning_rate,
            warmup_steps=setting.warmup_steps,
            momentum=setting.momentum,
        ),
        corpus=CorpusConfig(data="synthetic"),
        corpus_key="k",
    )
    session = {"date": "2026-01-02", "processor": "P", "torch_threads": 1, "device": "cpu", "python": "3.11"}
    return {
        "run": config.name,
        "variant": variant,
        "seed": seed,
        "parameters": 1000,
        "config": config.to_dict(),
        "sessions": [session | {"packages": {"torch": "2.13"}, "commit": "0123", "uncommitted_changes": False}],
        "corpus": {"note": None},
        "validation": {
            "tokens": 99,
            "cross_entropy": [9.0, 9.0, 9.0, loss],
            "l2_norm": {"mean": [1.0, 1.0, 1.0, norm]},
        },
    }
