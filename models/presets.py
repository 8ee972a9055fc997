"""Named sizes. 44M, 129M and 1.4B are the paper's; cpu is ours, for two cores and a few minutes."""

from models.config import ModelConfig

PRESETS: dict[str, ModelConfig] = {
    "tiny": ModelConfig(d_model=32, num_layers=1, num_heads=2, vocab_size=256, context=32),
    "cpu": ModelConfig(d_model=128, num_layers=2, num_heads=4, vocab_size=2_000, context=128),
    "44m": ModelConfig(d_model=512, num_layers=8, num_heads=8, vocab_size=20_000, context=256, dropout=0.1),
    "129m": ModelConfig(d_model=768, num_layers=12, num_heads=12, vocab_size=20_000, context=256, dropout=0.1),
    "1.4b": ModelConfig(d_model=2048, num_layers=20, num_heads=16, vocab_size=20_000, context=256, dropout=0.1),
}
