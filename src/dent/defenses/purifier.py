"""A denoiser in front of the model (Liao et al., CVPR 2018)."""

import copy
import hashlib
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, nn

from dent.adaptation.adaptation import Adaptation
from dent.defenses.base import ReferenceDefense
from dent.defenses.batch_check import check_batch
from dent.errors import InputError, UnsupportedModelError
from dent.support.devices import device_of

BUNDLED: Final = Path(__file__).parent / "weights" / "denoiser-cifar10.safetensors"
"""The weights of a `Denoiser` for CIFAR-10 images."""


def _safetensors() -> Any:
    """Import safetensors only when it is needed, so that `import dent` does not load it."""
    return import_module("safetensors.torch")


class Denoiser(nn.Sequential):
    """A net of five convolutions that estimates the perturbation of an image.

    Args:
        channels: number of channels of the images.
        width: number of channels of the hidden layers.
    """

    def __init__(self, channels: int = 3, width: int = 32) -> None:
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
        for _ in range(3):
            layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
        super().__init__(*layers, nn.Conv2d(width, channels, 3, padding=1))


class Purifier(ReferenceDefense):
    """A static defense that subtracts an estimate of the perturbation, then predicts.

        model(x − g(x))

    for a denoiser g. Nothing adapts, and the gradient of `predict` is exact.

    The bundled g was trained like the denoisers of Liao et al.: its loss is the distance between
    the model's logits, |f(x̃ − g(x̃)) − f(x)|, for FGSM images x̃ at 8/255 in l∞ of
    `resnet-14-2-linf` (`examples/train_purifier.py`). Athalye and Carlini ("On the Robustness of
    the CVPR 2018 White-Box Adversarial Example Defenses") broke the denoisers of Liao et al. by
    following this gradient.

    Source: Liao, Liang, Dong, Pang, Hu and Zhu, "Defense against Adversarial Attacks Using
    High-Level Representation Guided Denoiser". They use a U-Net.

    Args:
        model: the classifier.
        denoiser: g, from images (N, C, H, W) to perturbations of that shape. The defense uses a
            copy on the model's device, always in eval mode. By default the bundled denoiser, for
            images with 3 channels in [0, 1].

    Raises:
        UnsupportedModelError: the model is not supported, or `denoiser` is no module.
    """

    name: ClassVar[str] = "purifier"
    steps: ClassVar[int] = 0

    def __init__(self, model: nn.Module, denoiser: nn.Module | None = None) -> None:
        super().__init__(model)
        if denoiser is not None and not isinstance(denoiser, nn.Module):
            raise UnsupportedModelError(
                f"the denoiser must be a torch.nn.Module, got {type(denoiser).__name__}."
            )
        if denoiser is None:
            denoiser = Denoiser()
            denoiser.load_state_dict(_safetensors().load_file(BUNDLED))
        self.denoiser = copy.deepcopy(denoiser).to(device_of(model)).requires_grad_(False).eval()

    @property
    def batch_dependent(self) -> bool:
        """False: each image is denoised separately."""
        return False

    @property
    def settings(self) -> dict[str, Any]:
        """The SHA-256 digest of the denoiser's weights, as a safetensors file."""
        state = {key: value.cpu() for key, value in self.denoiser.state_dict().items()}
        return {"denoiser": hashlib.sha256(_safetensors().save(state)).hexdigest()}

    def train(self, mode: bool = True) -> "Purifier":
        """Set the mode; the denoiser stays in eval mode."""
        super().train(mode)
        self.denoiser.eval()
        return self

    def adapt(self, x: Tensor, *, differentiable: bool = False) -> Adaptation:
        """Return an empty adaptation, since nothing adapts."""
        return self.classifier.adapt(x, differentiable=differentiable)

    def predict(self, x: Tensor, adaptation: Adaptation) -> Tensor:
        """Return logits (N, classes) of the denoised images, with the exact gradient to `x`.

        The denoiser computes in the precision of its weights.

        Raises:
            InputError: the denoiser or the model cannot take `x`.
        """
        check_batch(x, self.name)
        return self.classifier.predict(x - self._noise(x), adaptation)

    def _noise(self, x: Tensor) -> Tensor:
        dtypes = (value.dtype for value in self.denoiser.parameters() if value.is_floating_point())
        try:
            noise: Tensor = self.denoiser(x.to(next(dtypes, x.dtype)))
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError) as error:
            raise InputError(
                f"The denoiser of {self.name} could not take a batch of shape {tuple(x.shape)}, "
                f"{x.dtype} on {x.device}: {error}"
            ) from error
        return noise.to(x.dtype)
