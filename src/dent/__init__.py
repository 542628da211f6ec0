"""torch-dent: dynamic defenses against adversarial attacks, and their evaluation.

    from dent import Dent, DENT_PLUS

    defended = Dent(model, DENT_PLUS)
    logits = defended(images)

Importing this package loads only the standard library. The first use of a name loads its module,
and torch with it.
"""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from dent.support.lazy import lazy

if TYPE_CHECKING:
    from dent import attacks as attacks
    from dent import data as data
    from dent import defenses as defenses
    from dent import distributed as distributed
    from dent import evaluation as evaluation
    from dent import models as models
    from dent import paper as paper
    from dent import report as report
    from dent import training as training
    from dent.adaptation.adaptation import Adaptation, Status
    from dent.adaptation.norm import register_norm
    from dent.adaptation.objectives import entropy
    from dent.config import DENT, DENT_NOMINAL, DENT_PLUS, DentConfig, SmoothingConfig, ViewsConfig
    from dent.defenses.dent import Dent
    from dent.errors import (
        CompileWarning,
        ConfigError,
        DataError,
        DentError,
        DentWarning,
        ExportError,
        InputError,
        MissingExtraError,
        NoAdaptationWarning,
        NotLogitsWarning,
        PixelRangeWarning,
        SlowPrecisionWarning,
        SmallBatchWarning,
        StatefulModelWarning,
        UnadaptedLayersWarning,
        UnknownNameError,
        UnsupportedModelError,
        WeightsError,
    )
    from dent.on_tensors import evaluate
    from dent.outputs import Logits
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
    "DentWarning",
    "ExportError",
    "InputError",
    "Logits",
    "MissingExtraError",
    "NoAdaptationWarning",
    "NotLogitsWarning",
    "Performance",
    "PixelRangeWarning",
    "SlowPrecisionWarning",
    "SmallBatchWarning",
    "SmoothingConfig",
    "StatefulModelWarning",
    "Status",
    "ThreatModel",
    "UnadaptedLayersWarning",
    "UnknownNameError",
    "UnsupportedModelError",
    "ViewsConfig",
    "WeightsError",
    "__version__",
    "entropy",
    "evaluate",
    "register_norm",
]

_MODULES = {
    "dent.adaptation": ("Adaptation", "Status"),
    "dent.config": (
        "DENT",
        "DENT_NOMINAL",
        "DENT_PLUS",
        "DentConfig",
        "SmoothingConfig",
        "ViewsConfig",
    ),
    "dent.defenses.dent": ("Dent",),
    "dent.errors": (
        "CompileWarning",
        "ConfigError",
        "DataError",
        "DentError",
        "DentWarning",
        "ExportError",
        "InputError",
        "MissingExtraError",
        "NoAdaptationWarning",
        "NotLogitsWarning",
        "PixelRangeWarning",
        "SlowPrecisionWarning",
        "SmallBatchWarning",
        "StatefulModelWarning",
        "UnadaptedLayersWarning",
        "UnknownNameError",
        "UnsupportedModelError",
        "WeightsError",
    ),
    "dent.adaptation.norm": ("register_norm",),
    "dent.adaptation.objectives": ("entropy",),
    "dent.on_tensors": ("evaluate",),
    "dent.outputs": ("Logits",),
    "dent.performance": ("Performance",),
    "dent.threat": ("ThreatModel",),
}
"""The module of each public name."""

_SUBMODULES = (
    "adaptation",
    "attacks",
    "config",
    "data",
    "defense",
    "defenses",
    "distributed",
    "errors",
    "evaluation",
    "models",
    "on_tensors",
    "outputs",
    "paper",
    "performance",
    "reference",
    "report",
    "threat",
    "training",
)
"""Modules that `import dent` makes available without a separate import."""

if not TYPE_CHECKING:  # with a `__getattr__`, a type checker would accept any name
    __getattr__, __dir__ = lazy(__name__, _MODULES, _SUBMODULES)
