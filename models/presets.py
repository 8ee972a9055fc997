"""Named sizes, and others between them. 44M, 129M and 1.4B are the paper's; cpu is ours, for two cores and a few
minutes."""

from dataclasses import replace

from models.config import ModelConfig

PRESETS: dict[str, ModelConfig] = {
    "tiny": ModelConfig(d_model=32, num_layers=1, num_heads=2, vocab_size=256, context=32),
    "cpu": ModelConfig(d_model=128, num_layers=2, num_heads=4, vocab_size=2_000, context=128),
    "44m": ModelConfig(d_model=512, num_layers=8, num_heads=8, vocab_size=20_000, context=256, dropout=0.1),
    "129m": ModelConfig(d_model=768, num_layers=12, num_heads=12, vocab_size=20_000, context=256, dropout=0.1),
    "1.4b": ModelConfig(d_model=2048, num_layers=20, num_heads=16, vocab_size=20_000, context=256, dropout=0.1),
}


def resized(
    size: ModelConfig,
    *,
    d_model: int | None = None,
    num_layers: int | None = None,
    embedding_multiplier: float | None = None,
) -> ModelConfig:
    """A size of another width, depth or h_0. Attention heads keep their width, so that their number follows.

    Args:
        size: where everything else is taken from.
        d_model: width of the state; `size`'s when None.
        num_layers: layers of the shared stack; `size`'s when None.
        embedding_multiplier: factor on h_0; `size`'s when None.

    Raises:
        ValueError: `d_model` is no multiple of the width of `size`'s heads, or what `ModelConfig` refuses.
    """
    head = size.d_model // size.num_heads
    width = size.d_model if d_model is None else d_model
    if width % head:
        raise ValueError(f"d_model must be a multiple of the width of a head, {head}, got {width}.")
    layers = size.num_layers if num_layers is None else num_layers
    multiplier = size.embedding_multiplier if embedding_multiplier is None else embedding_multiplier
    return replace(size, d_model=width, num_heads=width // head, num_layers=layers, embedding_multiplier=multiplier)
