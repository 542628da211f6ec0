"""Things to evaluate that take long enough to be killed within."""

import time
from typing import Any, final

from dent.attacks import Attack, Outcome, Querier, Queries
from dent.threat import Norm, ThreatModel
from tests.evaluation.subjects import Push


@final
class SlowPush(Attack):
    """A push that takes its time, and says how far it is."""

    name = "slow"

    def __init__(self, seconds: float = 0.15) -> None:
        self.seconds = seconds

    def run(self, target: Querier, threat: ThreatModel, seed: int) -> Outcome:
        time.sleep(self.seconds)
        return Push().run(target, threat, seed)

    def settings(self, norm: Norm = "linf") -> dict[str, Any]:
        del norm
        return {}

    def queries(self, n_classes: int, norm: Norm = "linf") -> Queries:
        return Push().queries(n_classes, norm)
