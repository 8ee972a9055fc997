"""What is claimed of trained models, and the rules that turn measurements into verdicts.

Both were fixed before the runs that they judge; of many an earlier sweep had shown the quantity by then, and the
findings say of which.
"""

from experiments.claims.claim import CaseFinding, Claim, Finding, Outcome, Rule, Runs, evaluate, index
from experiments.claims.confounds import CONFOUND_CLAIMS
from experiments.claims.exits import EXIT_CLAIMS
from experiments.claims.growth import GROWTH_CLAIMS
from experiments.claims.paper import PAPER_CLAIMS
from experiments.claims.tables import SCHEMA, NotMeasured, RunTables
from experiments.claims.training import TRAINING_CLAIMS
from experiments.claims.visibility import VISIBILITY_CLAIMS

CLAIMS: tuple[Claim, ...] = (
    *PAPER_CLAIMS,
    *EXIT_CLAIMS,
    *VISIBILITY_CLAIMS,
    *GROWTH_CLAIMS,
    *TRAINING_CLAIMS,
    *CONFOUND_CLAIMS,
)

__all__ = [
    "CLAIMS",
    "SCHEMA",
    "CaseFinding",
    "Claim",
    "Finding",
    "NotMeasured",
    "Outcome",
    "Rule",
    "RunTables",
    "Runs",
    "evaluate",
    "index",
]
