"""A mistyped choice or a NaN is refused when the configuration is made, not when a model runs."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
from jaxtyping import TypeCheckError

from models import BetweenConfig, ModelConfig, ReadoutConfig, Supervision

SIZE = {"d_model": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 5, "context": 4}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ReadoutConfig(kind="layer_norm"), "unknown readout kind 'layer_norm'; known: raw, "),
        (lambda: BetweenConfig(kind="RMSNorm"), "unknown operation between loops 'RMSNorm'; known: none, rmsnorm"),
        (
            lambda: ModelConfig(**SIZE, block_norm="rms_norm"),
            "unknown block_norm 'rms_norm'; known: rmsnorm, layernorm",
        ),
        (lambda: ModelConfig(**SIZE, position="alibi"), "unknown position 'alibi'; known: learned, rotary"),
        (lambda: ModelConfig(**SIZE, norm_eps=math.nan), "norm_eps must not be negative, got nan"),
        (lambda: ModelConfig(**SIZE, embedding_std=math.nan), "embedding_std must be positive, got nan"),
        (
            lambda: ModelConfig(**SIZE, embedding_multiplier=math.nan),
            "embedding_multiplier must be positive and finite",
        ),
        (lambda: Supervision(placement="dense"), "unknown placement 'dense'; known: terminal, per_loop"),
        (lambda: Supervision(norm_penalty=math.nan), "norm_penalty must be positive"),
        (lambda: Supervision().loop_weights(0), "at least one loop"),
    ],
)
def test_it_is_refused_in_words(make, message):
    # The type checker that is on in tests refuses a wrong literal before our own sentence can.
    with pytest.raises((ValueError, TypeCheckError)) as caught:
        make()
    if isinstance(caught.value, ValueError):
        assert message in str(caught.value)


def test_a_wrong_literal_gets_our_sentence_where_nothing_checks_types():
    code = "from models import ReadoutConfig; ReadoutConfig(kind='layer_norm')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert "ValueError: unknown readout kind 'layer_norm'; known: raw, raw_final_rmsnorm, rmsnorm" in done.stderr
