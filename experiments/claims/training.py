"""What `theory/` predicts of growth across training, and of low precision (P16, P17)."""

from experiments.claims import dynamics as d
from experiments.claims.cases import BLIND_GROWING, PENALISED, RAW
from experiments.claims.claim import Claim, Rule

TWO_OCTAVES = 2.0  # a number of loops off by a factor of 4

TRAINING_CLAIMS = (
    Claim(
        key="attribution-adds-up",
        text="What the parameter groups contributed to log norm adds up to its change over training.",
        source="theory P16",
        basis="by construction",
        prediction="within 10 %",
        method="|sum - change of mean log |h_K|| / |change|, from weight snapshots.",
        tables=("attribution",),
        cases=(*BLIND_GROWING, *RAW, *PENALISED),
        estimate=d.attribution_error,
        rule=Rule(expect="below", low=0.1, high=0.5),
        unit="relative error",
        figure="attribution",
    ),
    Claim(
        key="not-the-embeddings",
        text="The embeddings' own growth is a small part of the growth of the state.",
        source="theory P16 (a toy: 0.04 of 3.51)",
        prediction="below a quarter",
        method="|Contribution of the embeddings| over the sum of all groups'.",
        tables=("attribution",),
        cases=BLIND_GROWING,
        estimate=d.embedding_share,
        rule=Rule(expect="below", low=0.25, high=0.5),
        unit="share",
        figure="attribution",
    ),
    Claim(
        key="initial-pressure",
        text="At initialisation the loss pushes the scale of the embeddings' state down, hence the blocks' up.",
        source="theory P16, P11 (<G_0, h_0> > 0)",
        prediction="above 0",
        method="Sum over tokens of <G_0, h_0> at step 0.",
        tables=("pressure",),
        cases=(("scale_invariant",), ("terminal_scale_invariant",)),
        estimate=d.initial_pressure,
        rule=Rule(expect="above", low=0.0, high=0.0),
        figure="pressure",
    ),
    Claim(
        key="pressure-from-the-tie",
        text="That pressure comes from the tied head: without it there is next to none.",
        source="theory P16 (a toy: 4.39 tied, -1e-4 untied)",
        prediction="untied below a tenth of tied",
        method="|<G_0, h_0>| of the untied run over that of the tied one, at step 0.",
        tables=("pressure",),
        cases=(("untied_scale_invariant", "scale_invariant"),),
        estimate=d.pressure_share,
        rule=Rule(expect="below", low=0.1, high=0.5),
        unit="ratio",
        figure="pressure",
    ),
    *(
        Claim(
            key=f"stops-moving-{dtype}",
            text=f"A {dtype} residual stream stops moving after the predicted number of loops.",
            source="theory P17",
            prediction="within a factor of 2",
            method="|log2 (predicted / seen)| loops, medians over tokens; where most still moved after the last of "
            "1024 (bfloat16) or 4096 (float16) loops, log2 (last / predicted) if that refutes, else nothing.",
            tables=("precision",),
            cases=BLIND_GROWING,
            estimate=d.stop_error(dtype, decides=TWO_OCTAVES),
            rule=Rule(expect="below", low=1.0, high=TWO_OCTAVES),
            figure="precision",
        )
        for dtype in ("bfloat16", "float16")
    ),
    Claim(
        key="fewer-bits-stop-earlier",
        text="With three bits less, a bfloat16 residual stream has stopped for more tokens than a float16 one.",
        source="theory P17",
        prediction="moving fraction at loop 64 larger in float16",
        method="Moving fraction at loop 64, float16 less bfloat16.",
        tables=("precision",),
        cases=BLIND_GROWING,
        estimate=d.moving_difference,
        rule=Rule(expect="above", low=0.0, high=0.05),
        unit="fraction",
        figure="precision",
    ),
)
