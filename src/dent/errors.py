"""Every error the package raises on purpose, by what its reader can do about it.

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
    """A defense cannot be recorded as a static graph: deploy it as the Python object it is."""


class DataError(DentError):
    """A dataset cannot be found, fetched or trusted: the message says where it was looked for."""


class WeightsError(DentError):
    """A model's weights cannot be found, read safely, or do not fit the model."""


class UnknownNameError(DentError, ValueError):
    """A model, dataset, defense or attack of that name does not exist: the message suggests one."""


class MissingExtraError(DentError, ImportError):
    """An optional dependency is missing: the message says which `pip install` brings it."""


class DentWarning(UserWarning):
    """Base of every warning that torch-dent gives on its own account."""


class CompileWarning(DentWarning):
    """A model could not be compiled, so that its defense computes without: same answers, slower."""


class WeightsWarning(DentWarning):
    """A weights file holds more than what was taken: the message says what, and how to take it."""


class DataWarning(DentWarning):
    """Part of a folder of images was passed over: the message says what and why."""


class BudgetWarning(DentWarning):
    """A radius is so large that it seems to be meant in other units than those of the pixels."""


class NotLogitsWarning(DentWarning):
    """A model seems to return probabilities where logits are expected."""


class NoAdaptationWarning(DentWarning):
    """The first step of a defense moves nothing, so that it is the static model."""


class UnadaptedLayersWarning(DentWarning):
    """A model has normalization layers of a kind that is not known, so they are not adapted."""


class PixelRangeWarning(DentWarning):
    """Images have values that only pixels from 0 to 255 have."""


class StatefulModelWarning(DentWarning):
    """A model keeps something from call to call, which a defense does not carry on."""
