"""Every configuration that can be built works; those that make no sense cannot be built."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from readouts import KINDS, readout_of

from models import BetweenConfig, ModelConfig, ReadoutConfig, Supervision, looped_loss

# Groups of 4 or more: a LayerNorm over two channels is constant and passes no gradient.
READOUTS = st.builds(
    readout_of, st.sampled_from(KINDS), gain=st.booleans(), tied=st.booleans(), num_groups=st.sampled_from([1, 2, 3])
)
BETWEENS = st.sampled_from([BetweenConfig(), BetweenConfig(kind="rmsnorm"), BetweenConfig(kind="damping", factor=0.7)])
CHANGES = st.fixed_dictionaries(
    {
        "num_layers": st.integers(1, 2),
        "num_heads": st.sampled_from([1, 2, 3, 6]),
        "num_loops": st.integers(1, 3),
        "readout": READOUTS,
        "between": BETWEENS,
        "block_norm": st.sampled_from(["rmsnorm", "layernorm"]),
        "position": st.sampled_from(["learned", "rotary"]),
        "qk_norm": st.booleans(),
        "norm_eps": st.sampled_from([0.0, 1e-6, 1e-2]),
        "embedding_std": st.sampled_from([1.0, 0.02]),
        "embedding_multiplier": st.sampled_from([1.0, 0.25, 4.0]),
        "dropout": st.sampled_from([0.0, 0.1]),
    }
)
SUPERVISIONS = st.sampled_from(
    # Made here: the type checker that is on in tests draws random numbers to check a tuple, which a strategy must not.
    [Supervision(placement=place, norm_penalty=p) for place in ("terminal", "per_loop") for p in (None, 0.01)]
)


@given(CHANGES, SUPERVISIONS, st.booleans(), st.integers(0, 2**31))
@settings(derandomize=True, deadline=None, max_examples=60)
def test_every_configuration_gives_finite_logits_and_a_gradient_to_every_weight(
    build, tokens, targets, changes, supervision, recompute, seed
):
    torch.manual_seed(seed)
    model = build(seed, **changes)
    model.recompute = recompute
    states = model(tokens)
    assert all(model.readout(h).isfinite().all() for h in states)
    loss = looped_loss(model, tokens, targets, supervision)
    assert loss.total.isfinite() and loss.mean_l2_norm.isfinite().all()
    loss.total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


POSITIVE = ("d_model", "num_layers", "num_heads", "vocab_size", "context", "num_loops")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(({name: 0}, f"{name} must be at least 1, got 0") for name in POSITIVE),
        (dict(num_heads=5), "num_heads=5 must divide d_model=12"),
        (dict(position="rotary", num_heads=4), "rotary positions need an even head width, got 3"),
        (
            dict(readout=ReadoutConfig(kind="group_rmsnorm", num_groups=5)),
            "num_groups=5 must divide d_model=12",
        ),
        (dict(norm_eps=-1e-6), "norm_eps must not be negative, got -1e-06"),
        (dict(embedding_std=0.0), "embedding_std must be positive, got 0.0"),
        (dict(embedding_multiplier=0.0), "embedding_multiplier must be positive and finite, got 0.0"),
        (dict(embedding_multiplier=math.inf), "embedding_multiplier must be positive and finite, got inf"),
        (dict(dropout=1.0), r"dropout must lie in \[0, 1\), got 1.0"),
        (dict(dropout=-0.1), r"dropout must lie in \[0, 1\), got -0.1"),
        (dict(dropout=float("nan")), r"dropout must lie in \[0, 1\), got nan"),
    ],
)
def test_an_impossible_model_is_refused(changes, message):
    small = dict(d_model=12, num_layers=2, num_heads=3, vocab_size=17, context=10)
    ModelConfig(**small)
    with pytest.raises(ValueError, match=message):
        ModelConfig(**{**small, **changes})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(kind="raw"), "a raw readout has no normalisation and so no gain: pass gain=False"),
        (dict(kind="group_rmsnorm"), "num_groups belongs to .* and to no other readout"),
        (dict(kind="group_layernorm"), "num_groups belongs to .* and to no other readout"),
        (dict(kind="rmsnorm", num_groups=2), "num_groups belongs to .* and to no other readout"),
    ],
)
def test_an_impossible_readout_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ReadoutConfig(**arguments)


@pytest.mark.parametrize("num_groups", [0, -2])
def test_a_number_of_groups_below_one_is_refused(num_groups):
    with pytest.raises(ValueError, match="num_groups"):
        ModelConfig(
            d_model=12,
            num_layers=2,
            num_heads=3,
            vocab_size=17,
            context=10,
            readout=ReadoutConfig(kind="group_rmsnorm", num_groups=num_groups),
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(kind="damping"), "factor belongs to the operation 'damping' and to no other"),
        (dict(kind="none", factor=0.5), "factor belongs to the operation 'damping' and to no other"),
        (dict(kind="damping", factor=0.0), "must lie strictly between 0 and 1, got 0.0"),
        (dict(kind="damping", factor=1.0), "must lie strictly between 0 and 1, got 1.0"),
        (dict(kind="damping", factor=float("nan")), "must lie strictly between 0 and 1, got nan"),
    ],
)
def test_an_impossible_operation_between_loops_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        BetweenConfig(**arguments)


@pytest.mark.parametrize("penalty", [0.0, -0.1])
def test_no_penalty_is_none_and_not_zero(penalty):
    with pytest.raises(ValueError, match="norm_penalty must be positive, or None for no penalty"):
        Supervision(norm_penalty=penalty)


@pytest.mark.parametrize("weights", [(0.0, 0.0), (1.0, -0.5), (1.0, math.nan), (math.inf, 1.0)])
def test_weights_that_make_no_loss_are_refused(weights):
    with pytest.raises(ValueError, match="weights must be finite, not negative and not all zero, got"):
        Supervision(weights=weights)
