"""A world in which every claim holds: tables as the suite writes them, with known answers; and run folders of them."""

import json
import math
import os

import pandas as pd
import pytest
from filelock import FileLock

from experiments.claims import SCHEMA, RunTables
from experiments.claims.confounds import cell_of
from experiments.config import TrainingConfig, resolve
from experiments.corpus import CorpusConfig
from experiments.reporting import gallery
from experiments.reporting.command import report
from experiments.runs import write_config
from models.readouts import build_readout

SEEDS = (0, 1, 2)
LOOPS = 4
DRAWN = ("scale_visible", "untied_scale_invariant")  # of two panels
FACTORS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
FINAL_NORMS = {
    "scale_visible": 4.0,
    "scale_invariant": 920.0,
    "norm_penalty": 58.0,
    "scale_removing": 90.0,
    "final_norm": 12.0,
    "layernorm": 950.0,
    "terminal_scale_visible": 4.0,
    "terminal_scale_invariant": 740.0,
    "terminal_norm_penalty": 75.0,
    "untied_scale_invariant": 220.0,
    "untied_scale_visible": 27.0,
    "small_init_scale_invariant": 810.0,
    "small_init_scale_visible": 30.0,
    "untied_small_init_scale_invariant": 110.0,
    "untied_small_init_scale_visible": 25.0,
}
# Cross-entropy after loops 1 and K.
LOSSES = {
    "scale_visible": (3.60, 3.45),
    "scale_invariant": (3.45, 3.45),
    "norm_penalty": (3.55, 3.45),
    "scale_removing": (3.60, 3.70),
    "final_norm": (3.60, 3.45),
    "terminal_scale_visible": (20.0, 3.30),
    "terminal_scale_invariant": (8.0, 3.30),
    "terminal_norm_penalty": (20.0, 3.32),
    "untied_scale_invariant": (2.95, 2.95),
    "untied_scale_visible": (2.90, 2.85),
}


class World:
    """Configurations and tables of every variant."""

    def __init__(self, tokens):
        self.tokens = tokens
        self.names = tuple(FINAL_NORMS)

    def config(self, name, seed=0, **training):
        return resolve(
            variant=name,
            preset="tiny",
            seed=seed,
            training=TrainingConfig(**({"steps": 12, "batch_size": 4} | training)),
            corpus=CorpusConfig(data="synthetic", vocab_size=256),
            tokens=self.tokens,
        )

    def tables(self, name, seed=0):
        return tables(self.config(name, seed), name, 1.0 + 0.01 * (seed - 1))

    def run(self, name, seed=0):
        config = self.config(name, seed)
        labels = (config.variant, *filter(None, [cell_of(config)]))
        return RunTables(
            name=f"{name}-{seed}", labels=labels, seed=seed, trained_loops=LOOPS, tables=self.tables(name, seed)
        )

    def runs(self, seeds=SEEDS, names=None):
        return [self.run(name, seed) for name in names or self.names for seed in seeds]

    def write(self, out, names=None, seeds=SEEDS, **training):
        """Run folders with tables, as if trained and measured."""
        for name in names or self.names:
            for seed in seeds:
                write_run(out / f"{name}-{seed}", self.config(name, seed, **training), self.tables(name, seed))
        return out


@pytest.fixture(scope="session")
def world(synthetic):
    return World(synthetic)


@pytest.fixture(scope="session")
def written(world, tmp_path_factory):
    """A report of every variant, made once for all tests, with figures of two of them: some runs cannot be read, a
    table is missing, and a claim fails."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent  # of all workers: who comes second waits, and takes what the first one made
    out = shared / "report"
    with FileLock(shared / "report.lock"):
        if not out.exists():
            made = tmp_path_factory.mktemp("world")
            _write_report(world, made / "runs", made / "report")
            (made / "report").rename(out)
    return out


def _write_report(world, runs, out):
    world.write(runs)
    for seed in (1, 2):
        (runs / f"layernorm-{seed}" / "summary.json").unlink()
    for seed in SEEDS:
        radial = runs / f"scale_visible-{seed}" / "measurements" / "radial.csv"
        pd.read_csv(radial).assign(immediate=1e-9).to_csv(radial, index=False)
    (runs / "scale_visible-0" / "measurements" / "clamp.csv").unlink()
    with pytest.MonkeyPatch.context() as patch:
        draw_all = gallery.draw_all
        patch.setattr(gallery, "draw_all", lambda runs: draw_all(tuple(r for r in runs if r.config.variant in DRAWN)))
        report(sorted(runs.iterdir()), out, None)


def write_run(folder, config, measured):
    folder.mkdir(parents=True)
    write_config(folder, config)
    session = {
        "date": "2026-01-02T03:04:05+00:00",
        "python": "3.11.7",
        "packages": {"torch": "2.13.0"},
        "commit": "0123456789abcdef",
        "uncommitted_changes": False,
        "command": ["/home/me/experiments/run.py", "--variant", "all", "--out", "/home/me/runs"],
        "processor": "A processor",
        "torch_threads": 1,
        "device": "cpu",
    }
    numbers = [1.0] * LOOPS
    row = dict.fromkeys(("quantity", "basis", "predicted", "observed", "verdict"), "")
    summary = {"table": [row], "num_loops": LOOPS} | {
        "run": folder.name,
        "variant": config.variant,
        "seed": config.seed,
        "config": config.to_dict(),
        "parameters": 1234,
        "sessions": [session],
        "corpus": {"source": "synthetic", "note": "Not the paper's text."},
        "training": {"tokens_per_second": 1.0},
        "validation": {
            "tokens": 999,
            "cross_entropy": numbers,
            "l2_norm": dict.fromkeys(("mean", "median", "p99", "max"), numbers),
        },
        "state": {"radial_gradient_fraction": numbers},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "measurements").mkdir()
    record = {"version": 1, "trained_loops": LOOPS, "run": folder.name, "environment": session}
    (folder / "measurements" / "measurements.json").write_text(json.dumps(record))
    for name, table in measured.items():
        table.to_csv(folder / "measurements" / f"{name}.csv", index=False)


def tables(config, name, jitter):
    """Every table of a run; `jitter` is the seed's own factor."""
    readout = build_readout(config.model)
    seen = [readout.degree(is_last=k == LOOPS) == 1 for k in range(1, LOOPS + 1)]  # the scale, by each loop's readout
    raw = seen[-1]
    between = config.model.between.kind != "none"
    penalty = config.supervision.norm_penalty is not None
    grows = not (any(seen) or penalty or between)
    final = FINAL_NORMS[name] * jitter
    norms = _norms(final, grows=grows, between=between)
    return {
        "loops": _loops(name, norms, jitter),
        "radial": _radial(seen, jitter, between=between, penalty=penalty),
        "increments": _increments(norms, jitter, grows=grows),
        "growth": _growth(norms, grows=grows),
        "growth_exponent": _frame(
            quantity=["exponent", "coherent_share", "carry"],
            estimate=[0.95 * jitter, 0.97, 0.0 if between else 1.0],
            low=0.0,
            high=1.0,
        ),
        "clamp": _frame(
            mode=["remove_radial", "remove_radial_after_loop1", "freeze_loop1", "decode_time"],
            cross_entropy=3.4,
            change=[0.004 * jitter, 0.003, -0.002 * jitter, 1e-7] if not raw else [0.3, 0.2, 0.5, 0.4 * jitter],
            low=-0.01,
            high=0.01,
        ),
        "depth": _loops(name, norms, jitter)[["k", "cross_entropy", "perplexity"]].assign(
            tokens_per_second=lambda t: 9000.0 / t["k"], low=800.0, high=10_000.0
        ),
        "halting": _halting(2.1 * jitter if any(seen) or penalty else 1.05 * jitter),
        "scale_sensitivity": _scale_sensitivity(jitter if raw else 0.0),
        "attribution": _attribution(jitter),
        "pressure": _frame(
            step=[0, 10, 12],
            k0_pressure=[jitter * (4.0 if config.model.readout.tied else 1e-3), 2.0, 1.0],
            norm=[10.0, 50.0, final],
        ),
        "common": _frame(
            step=[0, 10, 12],
            l2_norm=[10.0, 50.0, final],
            common_fraction=[0.1, 1.0 - 0.01 * jitter, 0.5],
            common_derivative=[-1.0, 0.1, 0.0],
            first_common_derivative=[-2.0, -0.1, 0.1],
        ),
        "own_token": _frame(
            step=[0, 10, 12],
            embedding_left=[1.0, 1.2, 1.4],
            centred_left=[1.0, 0.6, 0.1],
            norm_ratio=[1.2, 30.0, 40.0],
            own_logit=[90.0 * jitter, 14.0, 5.0] if config.model.readout.tied else [0.1 * jitter, 0.0, 0.0],
        ),
        "deferred": _deferred(jitter, theory=-4.0 if between else 0.0 if raw else -2.0, blind=not raw),
        "coefficient_law": _frame(
            placement=["terminal", "per_loop"],
            coefficient_predicted=[4.0, 2.5] if not (raw or between) else math.nan,
            coefficient_seen=[4.01 * jitter, 2.49 * jitter],
        ),
        "precision": _frame(
            dtype=["bfloat16", "float16"],
            loops_predicted=[200.0, 1600.0],
            loops_seen=[210.0 * jitter, 1500.0 * jitter],
            moving_fraction_at_64=[0.5, 0.9 * jitter],
            overflow_loop=math.nan,
        ),
    }


def _frame(**columns):
    return pd.DataFrame(columns)


def _norms(final, *, grows, between):
    """By loop, 0 to 64."""
    if between:
        return [10.0, final * 0.8, final * 0.98, final * 0.995, *[final] * 61]
    if grows:
        return [final * max(k, 0.05) / LOOPS for k in range(65)]
    return [final * (0.9 + 0.1 * k / LOOPS) for k in range(65)]


def _loops(name, norms, jitter):
    first, last = LOSSES.get(name, (3.4, 3.4))
    k = range(1, 2 * LOOPS + 1)
    loss = [last + (first - last) * max(LOOPS - i, 0) / (LOOPS - 1) + 0.002 * (jitter - 1) for i in k]
    mean = [norms[i] for i in k]
    return _frame(
        k=k,
        cross_entropy=loss,
        perplexity=[math.exp(x) for x in loss],
        l2_norm_mean=mean,
        l2_norm_median=[0.95 * x for x in mean],
        l2_norm_p99=[1.5 * x for x in mean],
        l2_norm_max=[2.0 * x for x in mean],
    )


def _radial(seen, jitter, *, between, penalty):
    blind, visible = 1e-11 * jitter, 0.07 * jitter
    immediate = [visible if by_readout else blind for by_readout in seen]
    leak = [1.0 if by_readout else 1e-9 * jitter for by_readout in seen]
    total = [1e-11] * LOOPS if between else [visible] * (LOOPS - 1) + [visible if penalty or seen[-1] else blind]
    return _frame(
        k=range(1, LOOPS + 1),
        immediate=immediate,
        total=total,
        random_direction=math.sqrt(2 / (math.pi * 32)),
        epsilon_leak_predicted=leak,
        epsilon_leak_seen=[value * 1.001 for value in leak],
    )


def _increments(norms, jitter, *, grows):
    s = norms[:64]
    angle = [100.0 / value for value in s]
    return _frame(
        k=range(64),
        regime_number=0.01 * jitter if grows else 1.5 * jitter,
        radial_increment=[(250.0 if grows else 0.1) * (1 + 0.001 * k) for k in range(64)],
        perpendicular_part=100.0,
        angular_step=angle,
        angular_step_times_norm=[a * b for a, b in zip(angle, s, strict=True)],
        heading_cosine=[math.nan, *[0.97 * min(jitter, 1.0)] * 63],
        pythagoras_residual=1e-16,
        second_order_seen=[50.0 / value for value in s],
        second_order_predicted=[49.0 / value for value in s],
    )


def _growth(norms, *, grows):
    rows = []
    methods = {
        "constant_increment": 0.98,
        "second_order": 0.99,
        "direction_flow": 1.01,
        "power_law": 1.02,
        "diffusive": 0.2,
        "asymptotic_slope": 1.4,
    }
    for method, factor in methods.items():
        for k in range(LOOPS + 1, 65):
            predicted = norms[LOOPS] + factor * (norms[k] - norms[LOOPS]) if grows else norms[k] * factor
            rows.append([k, norms[LOOPS], norms[k], method, predicted, 0.9 * predicted, 1.1 * predicted])
    return pd.DataFrame(rows, columns=list(SCHEMA["growth"]))


def _halting(loops):
    return _frame(
        policy=["margin", "entropy", "state_change"],
        threshold=[1.0, 0.5, math.inf],
        loops_calibration=loops,
        perplexity_ratio_calibration=1.009,
        average_loops=[loops, loops + 0.1, 4.0],
        perplexity_ratio=1.005,
        low=loops - 0.1,
        high=loops + 0.1,
        met=True,
    )


def _scale_sensitivity(strength):
    change = [strength * (factor - 1.0) ** 2 for factor in FACTORS]
    return _frame(factor=FACTORS, cross_entropy=[3.4 + value for value in change], change=change)


def _attribution(jitter):
    rows = []
    for start, end in ((0, 5), (5, 12)):
        parts = {"token embedding": 0.05, "attention writers": 0.9, "MLP readers": 0.8 * jitter, "block norms": 0.1}
        total = sum(parts.values())
        rows += [[start, end, group, value] for group, value in (parts | {"sum": total, "truth": 1.01 * total}).items()]
    return pd.DataFrame(rows, columns=list(SCHEMA["attribution"]))


def _deferred(jitter, *, theory, blind):
    rows = []
    for k in range(LOOPS):
        for factor in (1.0, 10.0, 100.0):
            rows.append([k, factor, 1e-2 * jitter * factor**theory, 1e-18 if blind else 1.0, theory, theory + 0.01])
    return pd.DataFrame(rows, columns=list(SCHEMA["deferred"]))
