"""Arithmetic of a looped model, and the peak that a machine reaches on matrix products."""

import time

import torch

from models import ModelConfig, Supervision

BACKWARD = 2  # times the forward pass


def forward_flops(model: ModelConfig) -> dict[str, float]:
    """Floating-point operations a token and loop of the forward pass, a multiply-add counted as two.

    Projections and SwiGLU (`stack`), attention with the causal half counted as well (`attention`), and one readout.
    """
    d = model.d_model
    return {
        "stack": 2.0 * model.num_layers * (4 * d * d + 3 * d * model.d_hidden),
        "attention": 2.0 * model.num_layers * 2 * model.context * d,
        "readout": 2.0 * d * model.vocab_size,
    }


def training_flops(model: ModelConfig, supervision: Supervision) -> float:
    """Floating-point operations a token of one training step: K loops, and a readout where the loss is placed."""
    loops = model.num_loops
    readouts = sum(weight != 0.0 for weight in supervision.loop_weights(loops))
    forward = forward_flops(model)
    return (1 + BACKWARD) * (loops * (forward["stack"] + forward["attention"]) + readouts * forward["readout"])


def matmul_peak(device: torch.device, *, rounds: int | None = None, repeats: int = 5) -> float:
    """Operations a second of a large square product of random matrices: bfloat16 on CUDA, float32 elsewhere.

    The best of some repeats: the first ones bring the clocks up.
    """
    on_gpu = device.type == "cuda"
    n = 8192 if on_gpu else 1024
    rounds = (20 if on_gpu else 4) if rounds is None else rounds
    x, y = (torch.randn(n, n, device=device, dtype=torch.bfloat16 if on_gpu else torch.float32) for _ in range(2))
    best = 0.0
    for _ in range(1 + repeats):
        synchronise(device)
        start = time.perf_counter()
        for _ in range(rounds):
            x @ y
        synchronise(device)
        best = max(best, rounds * 2.0 * n**3 / (time.perf_counter() - start))
    return best


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
