"""A proposition is an object with three independent legs: a symbolic proof, a numeric check and a negative control.

Each file of `theory/propositions/` makes one, under the name PROPOSITION, and `PROPOSITIONS` collects them: adding a
proposition is adding a file.
"""

import importlib
import math
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import sympy as sp

from theory.cases import Case
from theory.symbols import split


class ProofError(AssertionError):
    """A step of a symbolic proof did not come out as claimed."""


@dataclass
class Proof:
    """The equations of a proof, each carried out by SymPy: one that fails raises.

    Nothing checks that they imply the statement: the argument between them is in docstrings, as is what they assume.
    """

    steps: list[tuple[str, sp.Basic]] = field(default_factory=list)

    def show(self, text: str, expression: sp.Basic) -> None:
        """Record a definition or an intermediate result; it claims nothing."""
        self.steps.append((text, expression))

    def equal(self, text: str, left: sp.Expr, right: sp.Expr) -> None:
        """Claim left = right as expressions; sums are taken as linear.

        Raises:
            ProofError: SymPy cannot reduce the difference to zero.
        """
        difference = sp.simplify(split(sp.expand(left - right)))
        if difference != 0:
            raise ProofError(f"{text}: the difference is {difference}, not 0")
        self.steps.append((text, sp.Eq(left, right, evaluate=False)))

    def true(self, text: str, claim: sp.Basic) -> None:
        """Claim a relation that SymPy decides under the symbols' assumptions.

        Raises:
            ProofError: it is false, or SymPy cannot decide it.
        """
        if sp.simplify(claim) != sp.true:
            raise ProofError(f"{text}: {claim} is not decided to be true")
        self.steps.append((text, claim))

    def __str__(self) -> str:
        width = len(str(len(self.steps)))
        return "\n".join(f"{n:>{width}}. {text}:\n{'':{width}}  {step}" for n, (text, step) in enumerate(self.steps, 1))

    def _repr_latex_(self) -> str:
        """How a notebook shows the proof."""
        lines = (rf"&\text{{{text}}}\\ &\quad {sp.latex(step)}" for text, step in self.steps)
        return "$$\\begin{aligned}" + r"\\[6pt]".join(lines) + "\\end{aligned}$$"


@dataclass(frozen=True, kw_only=True)
class Residual:
    """A number that theory says is zero, relative to a scale that it names, with the tolerance it must meet."""

    value: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """False for NaN too: a check that measured nothing has not passed."""
        return self.value <= self.tolerance


def worst(values: Iterable[float]) -> float:
    """The largest, and NaN if any is: Python's own `max` forgets a NaN unless it comes first."""
    values = list(values)
    return math.nan if any(map(math.isnan, values)) else max(values)


def least(values: Iterable[float]) -> float:
    """The smallest, and NaN if any is: of controls, all of which must fail."""
    return -worst(-value for value in values)


@dataclass(frozen=True, kw_only=True)
class Proposition:
    """One claim.

    Attributes:
        key: P1, P2, ...
        title: the claim in words, one line.
        words: the claim in one plain sentence, for tables.
        statement: the claim in LaTeX.
        hypotheses: what it needs, in words.
        source: lemma of the paper, or this project.
        prove: carries out the equations of the symbolic proof; raises ProofError when one fails.
        check: residual of the claim on a random case, in float64.
        control: the same residual where the claim must fail; it must exceed `control_floor`.
        control_floor: how badly the control fails at least, decades above the tolerance.
    """

    key: str
    title: str
    words: str
    statement: str
    hypotheses: tuple[str, ...]
    source: str
    prove: Callable[[], Proof]
    check: Callable[[Case], Residual]
    control: Callable[[Case], Residual]
    control_floor: float


def _collect() -> Iterator[Proposition]:
    import theory.propositions as package

    for name in sorted(info.name for info in pkgutil.iter_modules(package.__path__)):
        found = getattr(importlib.import_module(f"{package.__name__}.{name}"), "PROPOSITION", None)
        if not isinstance(found, Proposition):
            raise TypeError(f"theory/propositions/{name}.py makes no PROPOSITION; keep helpers elsewhere in theory/.")
        yield found


def by_key(found: Iterable[Proposition]) -> dict[str, Proposition]:
    """Propositions by key, in order.

    Raises:
        ValueError: two have the same key.
    """
    keyed: dict[str, Proposition] = {}
    for proposition in found:
        if proposition.key in keyed:
            raise ValueError(f"two propositions are called {proposition.key}; give one of their files another key.")
        keyed[proposition.key] = proposition
    return keyed


def propositions() -> dict[str, Proposition]:
    """All propositions by key, in order.

    Raises:
        TypeError: a file of `theory/propositions/` makes none.
        ValueError: two have the same key.
    """
    return by_key(_collect())
