"""The command behind `experiments/run.py`: options in, runs out, tables on the screen."""

import importlib.util
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from experiments.config import Optimiser, RunConfig, TrainingConfig, require_preset, resolve, weighted
from experiments.corpus import CorpusConfig, TokenCorpus, default_cache, prepare
from experiments.device import choose_device, make_arithmetic_repeatable
from experiments.errors import UsageError, require_at_least
from experiments.experiment import run
from experiments.tables import markdown, rows_as_markdown
from experiments.training.trainer import Execution
from experiments.variant import Variant
from experiments.variants import VARIANTS, find, select
from models import PRESETS, ModelConfig, resized

MOST_NATS = 700.0  # whose exponential is still a number
DESCRIPTION = """Train looped language models by variant, evaluate them, and print what was predicted and what happened.

Every run writes one folder, OUT/VARIANT-SEED. Variants:

""" + "\n".join(f"  {variant.name}: {variant.summary}" for variant in VARIANTS.values())


@dataclass(frozen=True, kw_only=True)
class Arguments:
    variant: str
    """A variant's name; `all` for every one and a comparison; `factorial` for the cells of the designed experiment."""
    preset: Annotated[
        str, tyro.conf.arg(help=f"Size and training defaults: {', '.join(PRESETS)} (cpu has 0.8M parameters).")
    ] = "cpu"
    d_model: int | None = None
    """Width of the model's state, of heads as wide as the preset's; the preset's when not given."""
    num_layers: int | None = None
    """Layers of the shared stack; the preset's when not given."""
    embedding_multiplier: float | None = None
    """Factor on the embeddings where they enter the loops, not on a head tied to them; the preset's when not given."""
    loop_weights: tuple[float, ...] | None = None
    """Weight of each loop's cross-entropy, one number a loop, for variants with a loss after every loop; the same for
    all, adding up to 1, when not given."""
    seeds: tuple[int, ...] = (0,)
    """One run a seed; the seed decides initial weights, data order and dropout."""
    out: Path = Path("runs")
    """Folder that gets the runs' folders."""
    resume: bool = False
    """Go on with unfinished runs in OUT, and keep finished ones."""
    steps: int | None = None
    """Optimiser steps; the preset's when not given."""
    loops: int | None = None
    """Loops to evaluate with, also beyond the trained number K; K when not given."""
    data: str = "stdlib"
    """stdlib (Python's own library on this machine), python (and the installed packages), synthetic[:SEED], a text
    file, a folder of them, or hf:NAME[:CONFIG] from the Hugging Face hub."""
    tokeniser: Literal["word", "byte"] = "word"
    """word: the paper's regular expression; byte: UTF-8 bytes."""
    vocab_size: int | None = None
    """Token ids of the word tokeniser; the preset's when not given (cpu 2000, 44m and above 20000)."""
    cache: Path = field(default_factory=default_cache)
    """Folder for prepared tokens, the only thing touched outside OUT (but hf: uses the Hugging Face cache, too)."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1, ..."""
    compile: bool = False
    """Compile the loop body, on a GPU also record a step as a CUDA graph: pays there, or in long CPU runs."""
    batch_size: int | None = None
    """Sequences a step; the preset's when not given."""
    micro_batches: int | None = None
    """Parts a batch is cut into to save memory, gradients accumulated; the preset's when not given."""
    recompute: bool = False
    """Save memory by recomputing activations in the backward pass."""
    learning_rate: float | None = None
    """Learning rate; the preset's when not given."""
    optimiser: Optimiser | None = None
    """adamw (the paper), sgd with momentum, or muon for the matrices of the stack and AdamW for the rest; the
    preset's when not given (adamw)."""
    momentum: float | None = None
    """Of SGD, and AdamW's beta1 (Muon keeps its own); the preset's when not given (0.9)."""
    schedule: Literal["constant", "cosine"] | None = None
    """Learning rate after warm-up; the preset's when not given (constant)."""
    warmup_steps: int | None = None
    """Steps of linear warm-up; the preset's when not given (none)."""
    weight_decay: float | None = None
    """Weight decay, on every parameter; the preset's when not given (0.01)."""
    checkpoint_every: int = 100
    """Optimiser steps between checkpoints."""
    snapshots: int | None = None
    """How many times the weights are kept during training, for the attribution of growth (each as large as the model);
    when not given 10 for tiny and cpu, none for the larger ones."""


def main() -> None:
    """Parse the command line and carry it out."""
    arguments = tyro.cli(Arguments, description=DESCRIPTION, prog="python experiments/run.py")
    variants = select(arguments.variant)
    require_at_least(1, checkpoint_every=arguments.checkpoint_every, loops=arguments.loops)
    require_at_least(0, snapshots=arguments.snapshots)
    training = _training(arguments, variants)
    size = _size(arguments)
    _require_weights(arguments.loop_weights, variants, size.num_loops)
    execution = Execution(
        device=choose_device(arguments.device),
        compile=arguments.compile,
        checkpoint_every=arguments.checkpoint_every,
        snapshots=_snapshots(arguments),
    )
    require_seeds(arguments.seeds)
    _require_packages()
    if arguments.out.exists() and not arguments.out.is_dir():
        raise UsageError(f"--out {arguments.out} is not a folder; name one, existing or new.")
    corpus_config = CorpusConfig(
        data=arguments.data,
        tokeniser=arguments.tokeniser,
        vocab_size=size.vocab_size if arguments.vocab_size is None else arguments.vocab_size,
    )
    # matplotlib keeps a cache of fonts; it belongs with ours, unless the user has said where.
    os.environ.setdefault("MPLCONFIGDIR", str(arguments.cache / "matplotlib"))
    tokens = prepare(corpus_config, arguments.cache, min_tokens=size.context + 1)
    print(_describe_corpus(tokens))
    make_arithmetic_repeatable(execution.device)
    summaries = []
    # Seeds outside, variants inside: an interrupted sweep leaves whole comparisons.
    for seed in arguments.seeds:
        for variant in variants:
            config = resolve(
                variant=variant.name,
                preset=arguments.preset,
                seed=seed,
                training=training,
                corpus=corpus_config,
                tokens=tokens,
                size=size,
                loop_weights=arguments.loop_weights,
            )
            summaries.append(_run_and_print(config, tokens, arguments, execution))
    if len(summaries) > 1 and arguments.variant != "factorial":  # its cells differ in training, too
        from experiments.comparison import compare
        from experiments.training_curves import compare_training

        folder = arguments.out / ("comparison" if arguments.variant == "all" else f"comparison-{arguments.variant}")
        print(f"\n# Comparison ({folder})\n")
        print(compare(summaries, folder))
        compare_training(summaries, arguments.out, folder)


def _run_and_print(
    config: RunConfig, tokens: TokenCorpus, arguments: Arguments, execution: Execution
) -> dict[str, Any]:
    num_loops = config.model.num_loops if arguments.loops is None else arguments.loops
    print(f"\n# {config.name}: {find(config.variant).summary}\n", flush=True)
    summary = run(config, tokens, arguments.out, execution, num_loops=num_loops, resume=arguments.resume)
    print(rows_as_markdown(summary["table"]))
    if summary.get("validation_at_num_loops") is not None:
        print(f"\nNot judged, {num_loops} loops (trained with {config.model.num_loops}):\n")
        print(_by_loop(summary["validation_at_num_loops"]))
    loss, counted = summary["validation"]["cross_entropy"][-1], summary.get("counting")
    perplexity = f"{math.exp(loss):.1f}" if loss < MOST_NATS else f"exp({loss:.0f})"
    if counted is not None:
        print(
            f"\nBy counting in the same {counted['tokens']:,} training tokens: {counted['bigram']:.3f} nats (pairs of "
            f"words), {counted['unigram']:.3f} (words); the model after loop {config.model.num_loops}: {loss:.3f}."
        )
    print(
        f"\nvalidation perplexity {perplexity}, "
        f"{summary['training']['tokens_per_second']:,.0f} tokens/s in training; "
        f"all of it in {arguments.out / config.name}",
        flush=True,
    )
    return summary


def _by_loop(validation: dict[str, Any]) -> str:
    columns = zip(validation["cross_entropy"], validation["l2_norm"]["mean"], strict=True)
    rows = [[str(k), f"{loss:.4f}", f"{norm:.4g}"] for k, (loss, norm) in enumerate(columns, 1)]
    return markdown(["loop", "cross-entropy", "mean L2 norm"], rows)


def require_seeds(seeds: Sequence[int]) -> None:
    """Check seeds of a command line: whole numbers from 0 on that torch takes, each once.

    Raises:
        UsageError: they are not, or there is none.
    """
    if not seeds or len(set(seeds)) < len(seeds) or not all(0 <= seed < 2**63 for seed in seeds):
        given = " ".join(map(str, seeds)) or "none"
        raise UsageError(f"--seeds must be different whole numbers from 0 to 2^63 - 1, at least one; got {given}.")


def _require_packages() -> None:
    """Find out now, not after an hour of training, that a figure cannot be drawn."""
    for name in ("matplotlib", "pandas", "scipy", "seaborn"):
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)


FROM_PRESET = (
    "steps",
    "batch_size",
    "micro_batches",
    "learning_rate",
    "optimiser",
    "momentum",
    "schedule",
    "warmup_steps",
    "weight_decay",
)
"""Options that are the preset's when not given, by their names in `TrainingConfig`."""


def _training(arguments: Arguments, variants: Sequence[Variant]) -> TrainingConfig:
    training = training_of(arguments.preset, variants, **{name: getattr(arguments, name) for name in FROM_PRESET})
    return replace(training, recompute=arguments.recompute or training.recompute)


def training_of(preset: str, variants: Sequence[Variant], **given: Any) -> TrainingConfig:
    """The training of a preset with what a command line gives, by names in `TrainingConfig`; None is not given.

    Raises:
        UsageError: the preset is unknown, a value makes no sense, or a variant sets another.
    """
    defaults = require_preset(preset)
    given = {name: value for name, value in given.items() if value is not None}
    for variant in variants:
        for name in sorted(variant.training.keys() & given.keys()):
            if variant.training[name] != given[name]:
                raise UsageError(
                    f"--{name.replace('_', '-')} {given[name]} does not go with {variant.name}, which sets it to "
                    f"{variant.training[name]}; leave it out."
                )
    try:
        return replace(defaults, **given)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _size(arguments: Arguments) -> ModelConfig:
    try:
        return resized(
            PRESETS[arguments.preset],
            d_model=arguments.d_model,
            num_layers=arguments.num_layers,
            embedding_multiplier=arguments.embedding_multiplier,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error


def _require_weights(loop_weights: tuple[float, ...] | None, variants: Sequence[Variant], num_loops: int) -> None:
    for variant in variants if loop_weights is not None else ():
        try:
            weighted(variant.supervision, loop_weights).loop_weights(num_loops)
        except ValueError as error:
            raise UsageError(f"--loop-weights does not go with {variant.name}: {error}") from error


def _snapshots(arguments: Arguments) -> int:
    if arguments.snapshots is None:
        return 10 if arguments.preset in ("tiny", "cpu") else 0
    return arguments.snapshots


def _describe_corpus(tokens: TokenCorpus) -> str:
    record = tokens.record
    characters = sum(record["characters"].values()) if record["characters"] else None
    unknown = record["unknown_rate"]
    parts = [
        f"data: {record['source']}",
        f"{record['file_count']} files" if record["file_count"] else None,
        f"{characters:,} characters" if characters else None,
        f"{record['tokens']['train']:,} + {record['tokens']['validation']:,} tokens (training + held out)",
        f"vocabulary {record['vocab_size']:,}",
        f"unknown {unknown['train']:.2%} / {unknown['validation']:.2%}" if unknown else None,
        f"entropy floor {record['entropy_floor_nats']:.4f} nats" if record["entropy_floor_nats"] else None,
    ]
    note = f"\n{record['note']}" if record["note"] else ""
    return "; ".join(part for part in parts if part) + "." + note
