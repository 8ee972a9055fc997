"""Which parts of a looped language model's state can its loss not see? Instruments that take callables and tensors.

Each module is one idea; its functions are imported from it:

    protocol        the three maps every instrument speaks of, and the loop over them
    radial          how much of a gradient points along the state; epsilon leak; degree of a readout
    blind           the blind subspace of a readout at a state
    invariance      finite group action: the test that decides, with canaries
    observability   visibility, activity, drive, deferred visibility
    gramian         the least and the most visible directions of a state
    deferred        the exact identity of the radial derivative, sublayer by sublayer
    growth          how a state's norm grows over further loops, from its direction
    increments      one loop's increment made exact, bounds over K loops, second-order terms
    precision       when a low-precision residual stream stops moving
    symmetry        scaling symmetries of the parameters, derived and measured
    optimiser_laws  how an optimiser moves a parameter norm that the loss cannot see
    common_vector   how much of a state is the same for every token
    attribution     which parameters moved the state's norm during training
    capture         states and interventions of one call of a reused module
    adapters        other people's looped models as the three maps
    monitor         watch a loop while it trains: norms, radial gradients, time to overflow, one warning
    auditing        all of it at once on a user's model: `audit`
    remedies        a penalty, a norm between loops, damping, a readout that sees the scale: a line each
"""

import importlib as _importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loopsight.auditing.report import AuditReport
    from loopsight.auditing.run import audit
    from loopsight.growth import AsymptoticStep, asymptotic_slope, asymptotic_step, regime_number
    from loopsight.monitor import LoopMonitor
    from loopsight.protocol import LoopedMaps, LoopedModel, unroll
    from loopsight.radial import radial_gradient_fraction
else:
    # Imported when asked for: torch takes seconds, in which the command `loopsight` can be interrupted.
    _HOMES = {
        "AsymptoticStep": "growth",
        "AuditReport": "auditing.report",
        "LoopMonitor": "monitor",
        "LoopedMaps": "protocol",
        "LoopedModel": "protocol",
        "asymptotic_slope": "growth",
        "asymptotic_step": "growth",
        "audit": "auditing.run",
        "radial_gradient_fraction": "radial",
        "regime_number": "growth",
        "unroll": "protocol",
    }

    def __getattr__(name):
        """A name of `__all__`, or a module of the package."""
        if name in _HOMES:
            globals()[name] = getattr(_importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
            return globals()[name]
        try:
            return _importlib.import_module(f"{__name__}.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{name}":  # something that the module needs
                raise
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None

    def __dir__():
        return sorted({*globals(), *__all__})


__all__ = [
    "AsymptoticStep",
    "AuditReport",
    "LoopMonitor",
    "LoopedMaps",
    "LoopedModel",
    "asymptotic_slope",
    "asymptotic_step",
    "audit",
    "radial_gradient_fraction",
    "regime_number",
    "unroll",
]
