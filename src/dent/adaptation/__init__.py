"""Adaptation of a model to one batch: the core step and its helpers.

`minimize` takes the adaptation steps. `unroll` decides which of them keep their graph, and
`non_finite` discards those that fail. `adapted_model` runs a model with norm parameters other than
its own. `private_copy` and related modules make the copy that a defense computes on.
"""

from dent.adaptation.adaptation import Adaptation, Status

__all__ = ["Adaptation", "Status"]
