"""torch-dent: dynamic defenses against adversarial attacks, and their honest evaluation.

    from dent import Dent, DENT_PLUS

    defended = Dent(model, DENT_PLUS)
    logits = defended(images)

Importing this package loads only the standard library. The first use of a name loads its module,
and torch with it.
"""

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
    "adaptation": ("Adaptation", "Status"),
    "config": ("DENT", "DENT_NOMINAL", "DENT_PLUS", "DentConfig", "SmoothingConfig", "ViewsConfig"),
    "defenses.dent": ("Dent",),
    "errors": (
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
        "SmallBatchWarning",
        "StatefulModelWarning",
        "UnadaptedLayersWarning",
        "UnknownNameError",
        "UnsupportedModelError",
        "WeightsError",
    ),
    "adaptation.norm": ("register_norm",),
    "adaptation.objectives": ("entropy",),
    "on_tensors": ("evaluate",),
    "outputs": ("Logits",),
    "performance": ("Performance",),
    "threat": ("ThreatModel",),
}
"""The module of each public name."""

_FORMER = ("adaptation", "defense", "defenses", "reference")
"""Modules that `import dent` has always made available without a separate import."""

_WHERE = {name: module for module, names in _MODULES.items() for name in names}


if not TYPE_CHECKING:  # with a `__getattr__`, a type checker would accept any name

    def __getattr__(name: str) -> object:
        """Load a public name or a module of this package when it is first used."""
        if name in _WHERE:
            value: object = getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
            globals()[name] = value
            return value
        if name in _MODULES or name in _FORMER:
            return importlib.import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
