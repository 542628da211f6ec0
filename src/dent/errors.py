"""Errors that the package raises on purpose, and its warnings.

Every error is a `DentError`, so one `except` catches all of them. Errors about a wrong argument are
also a `ValueError`. A message says what was expected, what was found, where, and what to do.
"""


class DentError(Exception):
    """Base of every error that torch-dent raises on purpose."""


class ConfigError(DentError, ValueError):
    """A setting or argument is out of range or contradicts another: change it."""


class UnsupportedModelError(DentError, ValueError):
    """The model has nothing that dent can adapt, or dent cannot run it: change the model."""


class InputError(DentError, ValueError):
    """A batch has a wrong type, shape, dtype or range: change the input."""


class ExportError(DentError, RuntimeError):
    """A defense cannot be recorded as a static graph: deploy the Python object."""


class DataError(DentError):
    """A dataset cannot be found, downloaded or trusted: the message lists where it looked."""


class WeightsError(DentError):
    """A model's weights cannot be found or read safely, or do not fit the model."""


class UnknownNameError(DentError, ValueError):
    """No model, dataset, defense or attack has this name: the message suggests one."""


class MissingExtraError(DentError, ImportError):
    """An optional dependency is missing: the message has the `pip install` command for it."""


class DentWarning(UserWarning):
    """Base of every warning that torch-dent gives."""


class CompileWarning(DentWarning):
    """A model could not be compiled, so its defense runs uncompiled: same predictions, slower."""


class WeightsWarning(DentWarning):
    """A weights file contains more than was loaded: the message says what, and how to load it."""


class ClassNamesWarning(DentWarning):
    """A model names its classes, but no name is the name of a class of the dataset."""


class DataWarning(DentWarning):
    """Part of a folder of images was skipped: the message says what and why."""


class SmallImagesWarning(DentWarning):
    """Images of a folder are smaller than the model's input, so they are enlarged or padded."""


class FewClassesWarning(DentWarning):
    """The chosen images lack classes of their dataset, which is in the order of its classes."""


class BudgetWarning(DentWarning):
    """A radius is so large that it probably has other units than the pixels."""


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


class SlowPrecisionWarning(DentWarning):
    """Computing in bfloat16 is no faster: the hardware emulates it, or the batch is in float64."""


class StatefulModelWarning(DentWarning):
    """A model keeps state between calls, but a defense does not keep it."""
