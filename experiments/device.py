"""Where a command computes, and how repeatably."""

from contextlib import AbstractContextManager, nullcontext

import torch

from experiments.errors import UsageError, first_line


def choose_device(name: str) -> torch.device:
    """The device of a name; `auto` is a GPU if there is one.

    Raises:
        UsageError: it cannot be used.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros((), device=name).item()  # of `meta` there is nothing to be had
        device = torch.device(name)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"cannot use --device {name} ({first_line(error)}); use auto or cpu.") from error
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # random states are kept, and graphs recorded, of the current one
    return device


def make_arithmetic_repeatable(device: torch.device) -> None:
    """Flush subnormals to zero, and use deterministic algorithms on the CPU."""
    # Before torch starts its threads, which inherit the setting. The N(0, 1) initialisation makes huge logits,
    # hence subnormal probabilities, on which this arithmetic is many times slower (see benchmarks/).
    torch.set_flush_denormal(True)
    if device.type == "cpu":
        # As torch.use_deterministic_algorithms, which imports torch's compiler first: two seconds of every process.
        torch.set_deterministic_debug_mode("error")


def autocast(device: torch.device) -> AbstractContextManager[object]:
    """bfloat16 matrix products on CUDA; nothing on CPU, where they are slower than float32."""
    return torch.autocast("cuda", dtype=torch.bfloat16) if device.type == "cuda" else nullcontext()
