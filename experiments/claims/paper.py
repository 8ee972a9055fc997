"""What the paper measured of norms and gradients (arXiv 2606.24898), as claims at this project's sizes.

Levels that depend on size, data or budget (a final norm of 39,207 at 44M parameters) become directions, ratios and
the thresholds of `expectations`; none is tuned to a published number.
"""

import re

import numpy as np

from experiments.claims import estimates as e
from experiments.claims.cases import BLIND, BLIND_GROWING, PAPER, PENALISED, RAW, REPEAT_LARGE, REPEAT_SMALL
from experiments.claims.claim import Claim, Rule
from experiments.comparison import CONTRASTS, Contrast
from experiments.expectations import (
    BLIND_CHANGE,
    BLIND_FRACTION,
    PINNED,
    UNPINNED,
    VISIBLE_CHANGE,
    VISIBLE_FRACTION,
)


def _contrast(contrast: Contrast) -> Claim:
    claimed = f"is {contrast.side} {contrast.bound:g}" if contrast.side else "(how large?)"
    return Claim(
        key="norm-" + "-".join(re.findall(r"\w+", contrast.text.replace("/", "over"))),
        text=f"Final norm: {contrast.text} {claimed}.",
        source=f"{PAPER}, final norms" if contrast.paper else "this project, control",
        prediction=f"{contrast.side} {contrast.bound:g}{contrast.note}" if contrast.side else "none made",
        method="Product of the runs' mean Euclidean norms after loop K to the given powers, seed by seed.",
        tables=("loops",),
        cases=(tuple(contrast.powers),),
        estimate=e.product(e.last_norm, tuple(contrast.powers.values())),
        rule=Rule(expect=contrast.side, low=contrast.bound, high=contrast.bound) if contrast.side else None,
        spread="log",
        unit="ratio" if len(contrast.powers) > 1 else "Euclidean norm",
        figure="norm_by_loop" if contrast.side else "factorial",
        note=contrast.note.strip(" ()"),
    )


PAPER_CLAIMS = (
    Claim(
        key="final-norm-grows",
        text="With a normalising readout the final norm leaves the tens, however the loss is placed.",
        source=f"{PAPER}, final norms 39,207 (44M) and 56,051 (129M)",
        prediction=f"above {UNPINNED:g}; the paper's level belongs to its size and budget",
        method="Mean over tokens of the Euclidean norm after loop K.",
        tables=("loops",),
        cases=BLIND_GROWING,
        estimate=e.last_norm,
        rule=Rule(expect="above", low=PINNED, high=UNPINNED),
        spread="log",
        unit="Euclidean norm",
        figure="norm_by_loop",
    ),
    Claim(
        key="final-norm-pinned",
        text="Raw readouts and norm penalties keep the final norm in the tens.",
        source=f"{PAPER}, final norms 'tens'; design rule; theory P6, P7",
        prediction=f"below {PINNED:g}",
        method="Mean over tokens of the Euclidean norm after loop K.",
        tables=("loops",),
        cases=(*RAW, *PENALISED, ("final_norm",)),
        estimate=e.last_norm,
        rule=Rule(expect="below", low=PINNED, high=UNPINNED),
        spread="log",
        unit="Euclidean norm",
        figure="norm_by_loop",
    ),
    *map(_contrast, CONTRASTS),
    Claim(
        key="radial-blind",
        text="A normalising readout's own loss has no gradient along the state, at any loop.",
        source=f"{PAPER}, Lemma 1 and radial gradient fraction 1e-8; theory P1",
        basis="by construction",
        prediction=f"below {BLIND_FRACTION:g} (only epsilon leaks; the paper's 1e-8 is float32's floor)",
        method="Largest immediate radial-gradient fraction over loops 1..K, recomputed in float64.",
        tables=("radial",),
        cases=BLIND,
        estimate=e.fraction("immediate", np.max, e.every_loop),
        rule=Rule(expect="below", low=BLIND_FRACTION, high=VISIBLE_FRACTION),
        spread="log",
        unit="fraction",
        figure="radial_fractions",
    ),
    Claim(
        key="radial-blind-last",
        text="A norm at the last readout only blinds the last loop.",
        source=f"{PAPER}, per-loop + final-only norm; theory P1",
        basis="by construction",
        prediction=f"below {BLIND_FRACTION:g} at loop K",
        method="Immediate radial-gradient fraction at loop K, in float64.",
        tables=("radial",),
        cases=(("final_norm",),),
        estimate=e.fraction("immediate", np.max, e.only_the_last),
        rule=Rule(expect="below", low=BLIND_FRACTION, high=VISIBLE_FRACTION),
        spread="log",
        unit="fraction",
        figure="radial_fractions",
    ),
    Claim(
        key="radial-visible",
        text="A raw readout's loss has a gradient along the state.",
        source=f"{PAPER}, radial gradient fraction 1e-2",
        prediction=f"above {VISIBLE_FRACTION:g} (the paper: about 1e-2)",
        method="Smallest immediate radial-gradient fraction over the loops with a raw readout, in float64.",
        tables=("radial",),
        cases=RAW,
        estimate=e.fraction("immediate", np.min, e.every_loop),
        rule=Rule(expect="above", low=BLIND_FRACTION, high=VISIBLE_FRACTION),
        spread="log",
        unit="fraction",
        figure="radial_fractions",
    ),
    Claim(
        key="clamp-harmless",
        text="Clamping the scale growth away at inference hardly changes the loss: the growth does no work.",
        source=f"{PAPER}, clamp +0.0004 to +0.0055; independent replication: about zero, either sign",
        prediction=f"changes by less than {REPEAT_SMALL:g} nats, either sign",
        method="Largest |change of cross-entropy| of the two clamps: radial part of every update removed; scale frozen "
        "at loop 1's.",
        tables=("clamp",),
        cases=BLIND_GROWING,
        estimate=e.largest_change("clamp")("mode", ("remove_radial", "freeze_loop1")),
        rule=Rule(expect="below", low=REPEAT_SMALL, high=REPEAT_LARGE),
        unit="nats",
        figure="clamp",
        note="The first update turns the embedding's state more than it lengthens it, so that removing its radial part "
        "is no test of growth; see the next claim.",
    ),
    Claim(
        key="clamp-after-loop-1",
        text="The same of the clamps that leave the first loop alone.",
        source="this project, after finding that the first update is no growth",
        prediction=f"changes by less than {REPEAT_SMALL:g} nats, either sign",
        method="Largest |change of cross-entropy|: radial part of every update after loop 1 removed; scale frozen at "
        "loop 1's.",
        tables=("clamp",),
        cases=BLIND_GROWING,
        estimate=e.largest_change("clamp")("mode", ("remove_radial_after_loop1", "freeze_loop1")),
        rule=Rule(expect="below", low=REPEAT_SMALL, high=REPEAT_LARGE),
        unit="nats",
        figure="clamp",
        note="Made after seeds 0 and 1 were seen.",
        seen=True,
    ),
    Claim(
        key="clamp-decode-time",
        text="Rescaling the state before the readout alone changes nothing.",
        source="theory P17",
        basis="by construction",
        prediction=f"changes by less than {BLIND_CHANGE:g} nats",
        method="|Change of cross-entropy| of the decode-time clamp.",
        tables=("clamp",),
        cases=BLIND_GROWING,
        estimate=e.largest_change("clamp")("mode", ("decode_time",)),
        rule=Rule(expect="below", low=BLIND_CHANGE, high=VISIBLE_CHANGE),
        unit="nats",
        figure="clamp",
    ),
    Claim(
        key="norms-over-tokens",
        text="How far the largest norms over tokens stand out.",
        source=f"{PAPER}, per-token norm distribution",
        prediction="none made",
        method="99th percentile over median of the norm over tokens, after loop K.",
        tables=("loops",),
        cases=(*BLIND_GROWING, *RAW, *PENALISED, ("final_norm",), ("scale_removing",)),
        estimate=e.tail_ratio,
        rule=None,
        spread="log",
        unit="ratio",
        figure="token_norms",
    ),
)
