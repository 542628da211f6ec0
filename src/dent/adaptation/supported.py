"""Check before anything runs that a defense can adapt a model."""

import torch
from torch import nn
from torch.fx import GraphModule
from torch.nn.parameter import is_lazy

from dent.adaptation.adapted_model import eager
from dent.adaptation.lookalikes import unadapted
from dent.adaptation.norm import affine_layers, norm_layers, own_tensor, registered_kind
from dent.adaptation.private_copy import private_copy
from dent.config import DentConfig
from dent.errors import UnsupportedModelError
from dent.support.plural import counted

_REFUSED = {
    nn.DataParallel: "wrap its .module, then put DataParallel around the Dent",
    nn.parallel.DistributedDataParallel: "wrap its .module",
    torch.jit.ScriptModule: "wrap the model it was scripted from: its layers cannot be replaced",
}


def check_supported(model: nn.Module, config: DentConfig) -> None:
    """Check that the defense `config` can run on `model` and has something to adapt in it.

    Raises:
        UnsupportedModelError: it cannot; the message says what was found and what would work.
    """
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(f"Dent expected a torch.nn.Module, got {type(model).__name__}.")
    for kind, advice in _REFUSED.items():
        if isinstance(model, kind):
            raise UnsupportedModelError(f"Dent cannot wrap a {type(model).__name__}: {advice}.")
    model = eager(model)
    _check_initialized(model)
    layers = dict(norm_layers(model))
    if config.steps:
        _check_differentiable(model)
    _check_layers(model, layers, config)
    for name, layer in layers.items():
        if (
            config.statistics != "train"
            and registered_kind(layer) is not None
            and own_tensor(layer, "running_mean") is not None
        ):
            raise UnsupportedModelError(
                f"Layer {name!r} ({type(layer).__name__}) has running statistics, and its "
                "registered kind does not say how to normalize by the batch's own. "
                "Configure statistics='train', or make it a torch.nn.BatchNorm2d."
            )
        if (
            config.statistics != "test"
            and isinstance(layer, nn.modules.batchnorm._BatchNorm)
            and layer.running_mean is None
        ):
            raise UnsupportedModelError(
                f"Layer {name!r} ({type(layer).__name__}) keeps no running statistics, so there "
                "are no train statistics to normalize by. Configure statistics='test'."
            )
        if (
            config.statistics == "moving"
            and isinstance(layer, nn.modules.instancenorm._InstanceNorm)
            and layer.running_mean is not None
        ):
            raise UnsupportedModelError(
                f"Layer {name!r} ({type(layer).__name__}) has running statistics, and "
                "statistics='moving' moves those of BatchNorm alone. Configure 'train' or 'test'."
            )
    private_copy(model)


def _check_initialized(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if any(map(is_lazy, [*module._parameters.values(), *module._buffers.values()])):
            raise UnsupportedModelError(
                f"Layer {name!r} ({type(module).__name__}) is not initialized yet: run one batch "
                "through the model before wrapping it."
            )


def _check_differentiable(model: nn.Module) -> None:
    # Running a batch would not show this: a quantized layer returns a gradient of 0 and warns.
    for name, module in model.named_modules():
        if type(module).__module__.startswith(
            ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")
        ):
            raise UnsupportedModelError(
                f"Layer {name!r} ({type(module).__name__}) is quantized, and PyTorch has no "
                "gradient through it: wrap the model before it is quantized. For speed there is "
                "Performance(precision='bfloat16')."
            )


def _check_layers(model: nn.Module, layers: dict[str, nn.Module], config: DentConfig) -> None:
    """Check that a model has the layers that a configuration adapts or normalizes by.

    Raises:
        UnsupportedModelError: it has none of them, or too few.
    """
    needs_affine = config.adapt_affine and config.steps > 0
    affine_count = len(affine_layers(model))
    if needs_affine and not affine_count:
        layer_types = sorted({type(layer).__name__ for layer in layers.values()})
        module_types = sorted({type(module).__name__ for module in model.modules()})
        what = (
            f"its normalization layers ({', '.join(layer_types)}) have no scale or shift"
            if layer_types
            else f"it has no normalization layer; its modules are {', '.join(module_types)}"
        )
        unknown = unadapted(model)
        what += f". {unknown.removesuffix('.')}" if unknown else ""
        if any(isinstance(module, GraphModule) for module in model.modules()):
            what += (
                ". A graph of torch.export has functions in place of layers: wrap the model that "
                "was exported"
            )
        raise UnsupportedModelError(
            f"Dent adapts the scale and shift of BatchNorm, LayerNorm, GroupNorm, InstanceNorm or "
            f"RMSNorm, and {type(model).__name__} has none to adapt: {what}. Was BatchNorm fused "
            "into the convolutions? Then wrap the model before that. For a model without such "
            "layers, adapt the input alone: DentConfig(adapt_affine=False, "
            "smoothing=SmoothingConfig(sigma=0.5))."
        )
    if config.last_layers is not None and config.last_layers > affine_count:
        raise UnsupportedModelError(
            f"last_layers={config.last_layers}, but {type(model).__name__} has "
            f"{counted(affine_count, 'normalization layer')} with a scale or shift: set at "
            f"most {affine_count}, or None for all."
        )
    test_statistics = config.statistics == "test" and not config.steps
    statistics_only = test_statistics and not config.smoothing and not config.views
    if statistics_only and not any(
        layer._buffers.get("running_mean") is not None for layer in layers.values()
    ):
        raise UnsupportedModelError(
            f"steps=0 with test statistics replaces running statistics, and no layer of "
            f"{type(model).__name__} keeps any: the defense would be the static model."
        )
