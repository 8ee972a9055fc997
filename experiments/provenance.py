"""In one paragraph: what the runs behind a table were, and what they were made with."""

from collections.abc import Callable, Sequence
from typing import Any

from experiments.config import TRAINING_PRESETS, RunConfig, loop_weights_of
from models import PRESETS


def provenance(summaries: Sequence[dict[str, Any]]) -> str:
    """Sizes, data, seeds, machine, dates and commits of runs of one corpus."""
    first = summaries[0]
    training, corpus = first["config"]["training"], first["corpus"]
    configs = [RunConfig.from_dict(summary["config"]) for summary in summaries]
    sessions = [session for summary in summaries for session in summary["sessions"]]

    def all_of(describe: Callable[[dict[str, Any]], str]) -> str:
        return ", ".join(sorted({describe(session) for session in sessions}))

    unknown = (corpus.get("unknown_rate") or {}).get("validation")
    counted = [summary["counting"] for summary in summaries if summary.get("counting") is not None]
    dates = sorted({session["date"][:10] for session in sessions})
    return (
        f"Cross-entropy (CE) in nats a token, {first['validation']['tokens']:,} held-out tokens"
        f"{'' if unknown is None else f'; {unknown:.1%} of the held-out part are unknown words'}. "
        f"{_by_counting(counted) if len(counted) == len(summaries) else ''}"
        f"{size_name(configs)} ({_parameters(summaries)}), "
        f"{training['steps']} steps of {training['batch_size']} x {first['config']['model']['context']} tokens, "
        f"{_of_training(configs)}, seeds "
        f"{', '.join(map(str, sorted({summary['seed'] for summary in summaries})))}. {corpus['note'] or ''} "
        f"Made {' to '.join(dates[:1] + dates[1:][-1:])} on {all_of(_machine)}, "
        f"{all_of(lambda s: str(s['torch_threads']))} thread(s), Python {all_of(lambda s: s['python'])}, torch "
        f"{all_of(lambda s: s['packages']['torch'])}, commit {all_of(lambda s: (s['commit'] or 'unknown')[:10])}"
        f"{' with uncommitted changes' if any(s['uncommitted_changes'] for s in sessions) else ''}."
    )


def _parameters(summaries: Sequence[dict[str, Any]]) -> str:
    first, counts = summaries[0], [summary["parameters"] for summary in summaries]
    sizes = {(summary["config"]["model"]["d_model"], summary["config"]["model"]["num_layers"]) for summary in summaries}
    if len(sizes) > 1:
        return f"{min(counts):,} to {max(counts):,} parameters"
    return f"{first['parameters']:,} parameters in {first['variant']}"


def size_name(configs: Sequence[RunConfig]) -> str:
    """The preset of all, and its sizes where the runs have others."""
    preset = configs[0].preset
    others = []
    for name in ("d_model", "num_layers", "embedding_multiplier"):
        sizes = sorted({getattr(config.model, name) for config in configs})
        if sizes != [getattr(PRESETS[preset], name)]:
            others.append(f"{name} {', '.join(f'{size:g}' for size in sizes)}")
    return f"Preset {preset}{' with ' if others else ''}{' and '.join(others)}"


def _of_training(configs: Sequence[RunConfig]) -> str:
    """Learning rates, and momenta and weights of the loops' losses where the runs have others than usual."""
    rates, momenta = (
        sorted({getattr(config.training, name) for config in configs}) for name in ("learning_rate", "momentum")
    )
    weights = sorted({loop_weights_of(config) for config in configs if config.supervision.placement == "per_loop"})
    text = f"learning rate{'s' * (len(rates) > 1)} {', '.join(f'{rate:g}' for rate in rates)}"
    if momenta != [TRAINING_PRESETS[configs[0].preset].momentum]:
        text += f", momentum {', '.join(f'{momentum:g}' for momentum in momenta)}"
    if weights not in ([], ["equal"]):
        text += f", loop weights {', '.join(weights)}"
    return text


def _by_counting(counted: Sequence[dict[str, Any]]) -> str:
    pairs, words = (sum(one[name] for one in counted) / len(counted) for name in ("bigram", "unigram"))
    return f"Counting alone, in the same training tokens: {pairs:.2f} (pairs of words) and {words:.2f} (words). "


def _machine(session: dict[str, Any]) -> str:
    return str(session["processor"] if session["device"] == "cpu" else session["device"])
