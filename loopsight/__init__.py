"""Which parts of a looped language model's state can its loss not see? Instruments that take callables and tensors."""

from loopsight.growth import AsymptoticStep, asymptotic_step, regime_number
from loopsight.protocol import LoopedModel
from loopsight.radial import radial_gradient_fraction

__all__ = [
    "AsymptoticStep",
    "LoopedModel",
    "asymptotic_step",
    "radial_gradient_fraction",
    "regime_number",
]
