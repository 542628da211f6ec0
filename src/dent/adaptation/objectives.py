"""Objectives that adaptation minimizes: entropy of the model's predictions, or their divergence."""

import math

import torch
from torch import Tensor

from dent.config import ObjectiveName, Reduction

PUBLISHED_EPSILON = 1e-5
"""Added inside the logarithms of information maximization, as in the authors' code."""


def log_probabilities(logits: Tensor) -> Tensor:
    """Return the logarithm of the softmax, in at least float32."""
    # Half-precision logits would lose the small probabilities that entropy consists of.
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def entropy(logits: Tensor) -> Tensor:
    """Return the Shannon entropy of each sample's prediction (paper equation 3).

    Args:
        logits: (..., C).

    Returns:
        (...) in nats, from 0 to ln C.
    """
    log_p = log_probabilities(logits)
    # A class masked by a logit of -inf adds nothing: 0 log 0 is 0, not NaN.
    return -(log_p.exp() * log_p.masked_fill(log_p.isneginf(), 0)).sum(-1)


def information_maximization(logits: Tensor) -> Tensor:
    """Return each sample's entropy minus the entropy of the batch's mean prediction.

    The mean of the result is the loss that dent+ minimizes (paper section 4.1, after Liang et al.
    2020): it rewards confident predictions that are spread over the classes. With a single sample
    the two terms cancel: the loss is 0 and so is its gradient.

    Args:
        logits: (N, C).

    Returns:
        (N,) in nats.
    """
    p = log_probabilities(logits).exp()
    mean = p.mean(0)
    sample_entropy = -(p * (p + PUBLISHED_EPSILON).log()).sum(-1)
    mean_entropy = -(mean * (mean + PUBLISHED_EPSILON).log()).sum(-1)
    return sample_entropy - mean_entropy


def log_mean_probability(logits: Tensor) -> Tensor:
    """Return the logarithm of the mean probability over views.

    Args:
        logits: (V, N, C).

    Returns:
        (N, C), in at least float32.
    """
    log_p = log_probabilities(logits)
    # If a logit of -inf masks a class in every view, its gradient must be 0, not NaN.
    masked = log_p.isneginf().all(0)
    total = log_p.masked_fill(masked, 0).logsumexp(0)
    return (total - math.log(len(logits))).masked_fill(masked, -math.inf)


def agreement(logits: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence between the predictions of a sample's views.

    This is the mean divergence KL(view || mean of the views), or the entropy of the mean minus the
    mean entropy. So the entropy of the mean (MEMO) is the sum of this and the views' mean entropy.

    Args:
        logits: (V, N, C).

    Returns:
        (N,) in nats, from 0 to ln V.
    """
    return entropy(log_mean_probability(logits)) - entropy(logits).mean(0)


def loss(logits: Tensor, objective: ObjectiveName, reduction: Reduction) -> Tensor:
    """Return the scalar that one adaptation step minimizes.

    Args:
        logits: (N, C), or (V, N, C) of V views: then entropy and information maximization use the
            mean prediction. "agreement" needs views.
        objective: what is minimized.
        reduction: how the samples' values are combined.
    """
    if objective == "agreement":
        values = agreement(logits)
    else:
        mean = log_mean_probability(logits) if logits.dim() == 3 else logits
        values = entropy(mean) if objective == "entropy" else information_maximization(mean)
    return values.mean() if reduction == "mean" else values.sum()
