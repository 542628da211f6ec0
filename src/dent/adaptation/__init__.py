"""How one batch changes a model: the core step, and what it needs.

`minimize` is the step. `adapted_model` runs a model with other norm parameters than its own,
`private_copy` and its neighbors make the copy that a defense computes on.
"""

from dent.adaptation.adaptation import Adaptation, Status

__all__ = ["Adaptation", "Status"]
