"""No token sees a later one, at any loop; it does see itself and the earlier ones."""

import pytest
from readouts import KINDS, readout_of

from models import BetweenConfig

VARIANTS = {
    **{f"{kind} readout": dict(readout=readout_of(kind)) for kind in KINDS},
    "untied": dict(readout=readout_of("raw_final_rmsnorm", tied=False)),
    "layernorm": dict(block_norm="layernorm", readout=readout_of("layernorm")),
    "rotary": dict(position="rotary"),
    "qk_norm": dict(qk_norm=True),
    "rotary_qk_norm": dict(position="rotary", qk_norm=True),
    "between_rmsnorm": dict(between=BetweenConfig(kind="rmsnorm")),
    "damping": dict(between=BetweenConfig(kind="damping", factor=0.8)),
}


@pytest.mark.parametrize("changed", [0, 3, 6])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_changed_token_changes_logits_from_its_position_on_and_none_before(build, tokens, variant, changed):
    model = build(**VARIANTS[variant]).requires_grad_(False)
    other = tokens.clone()
    other[:, changed] = (tokens[:, changed] + 1) % 17
    last = model.config.num_loops
    for k, (h, h_other) in enumerate(zip(model(tokens), model(other), strict=True)):
        difference = model.readout(h, is_last=k == last) - model.readout(h_other, is_last=k == last)
        by_position = difference.abs().amax((0, 2))
        assert (by_position[:changed] <= 1e-12).all()
        first_unaffected = changed + 1 if k == 0 else 7  # the embedding itself mixes no tokens
        assert (by_position[changed:first_unaffected] > 1e-6).all()
