"""Check that outputs are logits, and that gradients reach what a step adapts."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from dent.adaptation.adapted_model import AdaptedModel, eager, norm_parameters
from dent.adaptation.copy_check import distance, equal_up_to_rounding
from dent.adaptation.functional_norms import FunctionalNorms
from dent.adaptation.norm import norm_layers, registered_kind
from dent.adaptation.objectives import loss
from dent.adaptation.row_orders import RowOrders
from dent.adaptation.views import of_views
from dent.config import DentConfig
from dent.errors import (
    NoAdaptationWarning,
    NotLogitsWarning,
    UnadaptedLayersWarning,
    UnsupportedModelError,
)
from dent.outputs import seem_probabilities
from dent.support.plural import counted, listed
from dent.support.warned import warn

_STATIC: Final = DentConfig(steps=0)
_REGISTERED_APART: Final = 0.02
_SHOWN: Final = 3

_CHECKPOINTING: Final = (
    "Switch activation checkpointing off (set_grad_checkpointing(False) in timm, "
    "gradient_checkpointing_disable() in transformers), or use torch.utils.checkpoint with "
    "use_reentrant=False."
)


def check_steps(
    config: DentConfig,
    row_orders: RowOrders,
    model: nn.Module,
    x: Tensor,
    restore: Callable[[], None],
) -> bool:
    """Check that the outputs are logits and that gradients reach what is adapted.

    Args:
        config: the defense.
        row_orders: the defense's; orders that are found are added.
        model: the model, not compiled; never written to.
        x: (N, ...), finite.
        restore: sets the random generators back.

    Returns:
        Whether the model gave an output to check: False if it fails on `x`.

    Raises:
        UnsupportedModelError: the outputs are not logits, a gradient is cut or fails, or a
            registered layer is declared wrongly.
    """
    adapted_config = replace(config, smoothing=None) if config.adapt_affine else config
    adapted = AdaptedModel(model, adapted_config, row_orders=row_orders)
    trained = norm_parameters(eager(model), config.last_layers) if config.adapt_affine else {}
    leaves = {name: _leaf(value, x, config) for name, value in trained.items()}
    restore()
    try:
        with adapted.noting_functions() as functions:
            logits = views = adapted(x, leaves)
        if config.views is not None:
            restore()
            views = of_views(partial(adapted, parameters=leaves), x, config.views)
    except UnsupportedModelError:
        raise
    except ValueError:  # an InputError: the full batch raises it
        return False
    _check_functions(model, config, functions)
    _warn_of_outputs(model, logits)
    if config.statistics == "train":
        restore()
        _check_registered(model, x, logits.detach())
    if config.granularity == "sample" and leaves:
        restore()
        _check_batch_axis(model, adapted_config, trained, x)
    objective = loss(views, config.objective, config.reduction)
    if not leaves or not objective.requires_grad:  # the first step reports this
        return True
    gradients = dict(zip(leaves, _gradients(model, objective, [*leaves.values()]), strict=True))

    def answer(values: Mapping[str, Tensor]) -> Tensor:
        restore()
        with torch.no_grad():
            return adapted(x, values)

    without = {name: leaves[name] for name, gradient in gradients.items() if gradient is None}
    cut = _cut(leaves, without, answer)
    if cut:
        _refuse_cut(model, cut, len(leaves))
    restore()
    _check_again(model, config, adapted, x, leaves, without, answer)
    reached = [gradient for gradient in gradients.values() if gradient is not None]
    alone = config.objective == "information-maximization" and len(x) == 1
    if not alone and not any(bool(gradient.any()) for gradient in reached):
        _warn_of_no_gradient(model, logits.detach())
    return True


def check_statistics(
    config: DentConfig, model: nn.Module, x: Tensor, restore: Callable[[], None]
) -> bool:
    """Check that a defense without steps replaces all running statistics by those of the batch.

    Args:
        config: the defense, with test statistics.
        model: the model, not compiled; never written to.
        x: (N, ...), finite.
        restore: sets the random generators back.

    Returns:
        Whether the model gave an output to check: False if it fails on `x`.

    Raises:
        UnsupportedModelError: the model normalizes by running statistics outside of layers.
    """
    adapted = AdaptedModel(model, replace(config, smoothing=None))
    restore()
    try:
        with torch.no_grad(), adapted.noting_functions() as functions:
            adapted(x, {})
    except UnsupportedModelError:
        raise
    except ValueError:  # an InputError: the full batch raises it
        return False
    _check_running(model, config, functions)
    return True


def _check_again(
    model: nn.Module,
    config: DentConfig,
    adapted: AdaptedModel,
    x: Tensor,
    leaves: Mapping[str, Tensor],
    without: Collection[str],
    answer: Callable[[Mapping[str, Tensor]], Tensor],
) -> None:
    """Check that a second forward on the same batch depends on the values that it is given.

    Args:
        model: the model, for the error.
        config: the defense.
        adapted: a private copy that has run on the batch with other values.
        x: the batch.
        leaves: the values.
        without: the names of those that no gradient reached in the first forward.
        answer: returns the logits with given values; they may be random.

    Raises:
        UnsupportedModelError: it does not, because the model keeps what it computed.
    """
    again = {name: leaf.detach().clone().requires_grad_() for name, leaf in leaves.items()}
    run = partial(adapted, parameters=again)
    objective = loss(of_views(run, x, config.views), config.objective, config.reduction)
    gradients: tuple[Any, ...] = (None,) * len(again)
    if objective.requires_grad:
        gradients = _gradients(model, objective, [*again.values()])
    reached = zip(again, gradients, strict=True)
    lost = [name for name, gradient in reached if gradient is None and name not in without]
    moved = _perturbed({name: again[name] for name in lost})
    if lost and equal_up_to_rounding(answer(again), answer({**again, **moved})):
        raise UnsupportedModelError(
            f"In a second forward on the same batch, no gradient reaches {len(lost)} of "
            f"{len(again)} adapted scales and shifts of {type(model).__name__} "
            f"({listed(lost, _SHOWN)}), so only the first step would change them. The model keeps "
            "outputs or activations of earlier calls, as a cache does: switch that off."
        )


def _cut(
    leaves: Mapping[str, Tensor],
    without: Mapping[str, Tensor],
    answer: Callable[[Mapping[str, Tensor]], Tensor],
) -> list[str]:
    """Return the names of values that the logits depend on, but that no gradient reaches.

    Args:
        leaves: all adapted values.
        without: those of them that no gradient reaches.
        answer: returns the logits with given values.
    """
    if not without or equal_up_to_rounding(
        answer(leaves), answer({**leaves, **_perturbed(without)})
    ):
        return []
    unmoved = answer(leaves)
    alone = [
        name
        for name, value in without.items()
        if not equal_up_to_rounding(unmoved, answer({**leaves, **_perturbed({name: value})}))
    ]
    return alone or list(without)  # only together they may move the logits beyond rounding


def _check_functions(model: nn.Module, config: DentConfig, functions: FunctionalNorms) -> None:
    """Warn about normalizations outside of layers; refuse statistics that could not be replaced."""
    _check_running(model, config, functions)
    if functions.called and config.adapt_affine:
        name = type(model).__name__
        warn(
            f"The forward of {name} calls {listed(dict.fromkeys(functions.called), _SHOWN)} with "
            "tensors that no normalization layer of it holds, so they are not adapted. Call a "
            "torch.nn layer there that is a submodule (in no global variable, closure or plain "
            "object), or ignore dent.UnadaptedLayersWarning.",
            UnadaptedLayersWarning,
        )


def _check_running(model: nn.Module, config: DentConfig, functions: FunctionalNorms) -> None:
    if functions.running is not None and config.statistics != "train":
        raise UnsupportedModelError(
            f"{type(model).__name__} calls batch_norm with running statistics of shape "
            f"{functions.running} that no normalization layer of it holds, so "
            f"statistics={config.statistics!r} would not replace them. Call a torch.nn.BatchNorm "
            "layer there that is a submodule (in no global variable, closure or plain object), or "
            "configure statistics='train'."
        )


def _check_registered(model: nn.Module, x: Tensor, logits: Tensor) -> None:
    """Check that layers of registered kinds compute what their registrations declare."""
    kinds = {type(layer) for _, layer in norm_layers(model) if registered_kind(layer) is not None}
    if not kinds:
        return
    with torch.no_grad():
        want = AdaptedModel(model, _STATIC)(x, {})
    bound = _REGISTERED_APART * float(want.nan_to_num(0, 0, 0).abs().max())
    if not torch.allclose(logits, want, rtol=0, atol=bound, equal_nan=True):
        kind_names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise UnsupportedModelError(
            f"With the trained scales and shifts, {type(model).__name__} gives other logits "
            f"than without a defense, by {distance(logits, want):.2g}: a registered kind "
            f"({kind_names}) "
            "does not compute normalized * scale + shift along the axis that dent.register_norm "
            "was told. Correct its channels, scale and shift, or adapt batch-wise."
        )


def _check_batch_axis(
    model: nn.Module, config: DentConfig, trained: Mapping[str, Tensor], x: Tensor
) -> None:
    """Check with other numbers of samples that the rows of every layer's input belong to samples.

    Otherwise a sequence of as many elements as the batch has samples would go unnoticed.
    """
    for more in (1,) if len(x) > 1 else (1, 2):
        rows = x[torch.arange(len(x) + more, device=x.device) % len(x)]
        leaves = {name: _leaf(value, rows, config) for name, value in trained.items()}
        with torch.no_grad():
            try:
                AdaptedModel(model, _STATIC)(rows, {})
            except torch.OutOfMemoryError:
                raise
            except Exception:  # the model takes no other number of samples
                return
            AdaptedModel(model, config)(rows, leaves)


def _leaf(value: Tensor, x: Tensor, config: DentConfig) -> Tensor:
    leaf = value.detach().to(torch.promote_types(value.dtype, torch.float32))
    leaf = leaf.expand(len(x), *leaf.shape) if config.granularity == "sample" else leaf
    return leaf.clone().requires_grad_()


def _perturbed(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach() * 1.5 + 0.5 for name, value in values.items()}


def _gradients(model: nn.Module, objective: Tensor, inputs: list[Tensor]) -> tuple[Any, ...]:
    try:
        return torch.autograd.grad(objective, inputs, allow_unused=True)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        advice = _CHECKPOINTING if "checkpoint" in str(error) else "Every step takes a gradient."
        raise UnsupportedModelError(
            f"The backward of {type(model).__name__} fails: {error} {advice}"
        ) from error


def _refuse_cut(model: nn.Module, names: list[str], total: int) -> None:
    raise UnsupportedModelError(
        f"No gradient reaches {len(names)} of {total} adapted scales and shifts of "
        f"{type(model).__name__} ({listed(dict.fromkeys(names), _SHOWN)}), although its logits "
        "depend on them, so they would never change. Something cuts the graph: reentrant "
        f"checkpointing, torch.no_grad(), detach() or NumPy. {_CHECKPOINTING} If the cut is "
        "intended, adapt only the layers after it (last_layers)."
    )


def _warn_of_outputs(model: nn.Module, logits: Tensor) -> None:
    name = type(model).__name__
    rows = logits.detach().float()
    if seem_probabilities(rows):
        what = (
            "rows that are not negative and sum to 1: probabilities, not logits. Take the softmax"
        )
    elif type(logits.grad_fn).__name__ == "SigmoidBackward0":
        what = (
            "what a sigmoid gives: a probability for each class alone, no logits. Take the sigmoid"
        )
    else:
        return
    warn(
        f"{name} returns {what} out of the model: the entropy of a softmax over them means "
        "nothing, and adaptation hardly moves.",
        NotLogitsWarning,
    )


def _warn_of_no_gradient(model: nn.Module, logits: Tensor) -> None:
    warn(
        f"The first step of the defense of {type(model).__name__} changes nothing: the gradient "
        "of its objective is exactly 0 in every scale and shift (tried on "
        f"{counted(len(logits), 'sample')}). "
        f"Its logits reach from {float(logits.min()):g} to {float(logits.max()):g}. If they are "
        "far apart, the softmax is saturated: check the units of the inputs. If they are all "
        "alike, the head is not trained.",
        NoAdaptationWarning,
    )
