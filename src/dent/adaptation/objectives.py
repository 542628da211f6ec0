"""What adaptation minimizes: the entropy of the model's own predictions."""

import torch
from torch import Tensor

from dent.config import ObjectiveName, Reduction

PUBLISHED_EPSILON = 1e-5
"""Inside the logarithms of information maximization, as in the authors' code."""


def _log_probabilities(logits: Tensor) -> Tensor:
    # Half-precision logits would lose the small probabilities that entropy consists of.
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def entropy(logits: Tensor) -> Tensor:
    """Return the Shannon entropy of each sample's prediction (paper equation 3).

    Args:
        logits: (N, C).

    Returns:
        (N,) in nats, from 0 to ln C.
    """
    log_p = _log_probabilities(logits)
    # A class masked by a logit of -inf adds nothing: 0 log 0 is 0, not NaN.
    return -(log_p.exp() * log_p.masked_fill(log_p.isneginf(), 0)).sum(-1)


def information_maximization(logits: Tensor) -> Tensor:
    """Return each sample's entropy minus the entropy of the batch's mean prediction.

    The mean over the result is the loss that dent+ minimizes (paper section 4.1, after Liang et
    al. 2020): confident predictions that are spread over the classes. With a single sample the two
    terms cancel: the loss is 0 and so is its gradient.

    Args:
        logits: (N, C).

    Returns:
        (N,) in nats.
    """
    p = _log_probabilities(logits).exp()
    mean = p.mean(0)
    sample_entropy = -(p * (p + PUBLISHED_EPSILON).log()).sum(-1)
    mean_entropy = -(mean * (mean + PUBLISHED_EPSILON).log()).sum(-1)
    return sample_entropy - mean_entropy


def loss(logits: Tensor, objective: ObjectiveName, reduction: Reduction) -> Tensor:
    """Return the scalar that one adaptation step minimizes, for logits of shape (N, C)."""
    values = entropy(logits) if objective == "entropy" else information_maximization(logits)
    return values.mean() if reduction == "mean" else values.sum()
