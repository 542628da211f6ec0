"""Every error that the package raises on purpose.

All of them are a `DentError`, so one `except` catches them; those about a wrong argument are also
a `ValueError`. A message says what was expected, what came, where, and what to do.
"""


class DentError(Exception):
    """Base of every error that torch-dent raises on purpose."""


class ConfigError(DentError, ValueError):
    """A configuration is out of range or contradicts itself: change the configuration."""


class UnsupportedModelError(DentError, ValueError):
    """The model has nothing dent can adapt, or computes in a way it cannot: change the model."""


class InputError(DentError, ValueError):
    """A batch has a wrong type, shape, dtype or range: change the input."""


class ExportError(DentError, RuntimeError):
    """A defense cannot be recorded as a static graph: deploy the Python object."""


class DataError(DentError):
    """A dataset cannot be found, downloaded or trusted: the message lists where it looked."""


class WeightsError(DentError):
    """A model's weights cannot be found, read safely, or do not fit the model."""


class UnknownNameError(DentError, ValueError):
    """A model, dataset, defense or attack of that name does not exist: the message suggests one."""


class MissingExtraError(DentError, ImportError):
    """An optional dependency is missing: the message has the `pip install` command."""


class DentWarning(UserWarning):
    """Base of every warning that torch-dent gives."""


class CompileWarning(DentWarning):
    """A model could not be compiled, so its defense runs uncompiled: same predictions, slower."""


class WeightsWarning(DentWarning):
    """A weights file has more than was loaded: the message says what, and how to load it."""


class ClassNamesWarning(DentWarning):
    """A model names its classes, and none of the names is one of the dataset's."""


class DataWarning(DentWarning):
    """Part of a folder of images was skipped: the message says what and why."""


class BudgetWarning(DentWarning):
    """A radius is so large that it is probably in other units than the pixels."""


class NotLogitsWarning(DentWarning):
    """A model seems to return probabilities instead of logits."""


class NoAdaptationWarning(DentWarning):
    """The first step of a defense changes nothing, so it predicts as it would without steps."""


class SmallBatchWarning(DentWarning):
    """A batch of one sample is normalized by its own statistics, so its prediction is noise."""


class UnadaptedLayersWarning(DentWarning):
    """A model has normalization layers of an unknown kind, which are not adapted."""


class PixelRangeWarning(DentWarning):
    """Images have pixel values that only occur in the range 0 to 255."""


class StatefulModelWarning(DentWarning):
    """A model keeps state between calls, which a defense does not keep."""
