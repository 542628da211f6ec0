"""torch-dent: dynamic defenses against adversarial attacks, and the truth about what they hold.

    from dent import Dent, DENT_PLUS

    defended = Dent(model, DENT_PLUS)
    logits = defended(images)

Importing this package loads torch and the standard library alone.
"""

from importlib.metadata import PackageNotFoundError, version

from dent.adaptation import Adaptation, Status
from dent.config import DENT, DENT_NOMINAL, DENT_PLUS, DentConfig, SmoothingConfig
from dent.defense import Dent
from dent.errors import (
    CompileWarning,
    ConfigError,
    DataError,
    DentError,
    ExportError,
    InputError,
    MissingExtraError,
    UnknownNameError,
    UnsupportedModelError,
    WeightsError,
)
from dent.objectives import entropy
from dent.performance import Performance
from dent.threat import ThreatModel

try:
    __version__ = version("torch-dent")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+unknown"

__all__ = [
    "DENT",
    "DENT_NOMINAL",
    "DENT_PLUS",
    "Adaptation",
    "CompileWarning",
    "ConfigError",
    "DataError",
    "Dent",
    "DentConfig",
    "DentError",
    "ExportError",
    "InputError",
    "MissingExtraError",
    "Performance",
    "SmoothingConfig",
    "Status",
    "ThreatModel",
    "UnknownNameError",
    "UnsupportedModelError",
    "WeightsError",
    "__version__",
    "entropy",
]
