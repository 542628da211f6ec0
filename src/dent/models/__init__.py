"""Static models for dent to defend: the paper's residual nets, a registry, and the user's own."""

from dent.errors import NotLogitsWarning
from dent.models.architecture import build
from dent.models.check import check_model
from dent.models.class_names import check_class_names
from dent.models.info import Accuracy, ModelInfo
from dent.models.normalize import CIFAR10_MEAN, CIFAR10_STD, Normalize
from dent.models.residual import ResNet, resnet
from dent.models.weights import weights_digest
from dent.models.zoo import info, load, names

__all__ = [
    "CIFAR10_MEAN",
    "CIFAR10_STD",
    "Accuracy",
    "ModelInfo",
    "Normalize",
    "NotLogitsWarning",
    "ResNet",
    "build",
    "check_class_names",
    "check_model",
    "info",
    "load",
    "names",
    "resnet",
    "weights_digest",
]
