"""A plain PyTorch test loop over a defended model: what changes, and what must not.

    python examples/plain_test_loop.py

The loop is the usual one. What matters to a dynamic defense:

- The DataLoader's batch is what adapts together, so `batch_size` is part of the defense, and so is
  the order where the defense is batch-dependent: another order is another accuracy.
- `torch.no_grad()` and `torch.inference_mode()` around the loop are fine: the defense records the
  gradients it needs by itself. `.eval()` is not needed: a `Dent` always computes in eval mode.
- A last batch of one sample gets information maximization that does nothing, or batch statistics
  that are noise. `drop_last=True` hides samples instead; choose a batch size that divides them.
- A row of NaN is no prediction (its input was not finite). Count it as wrong before `argmax`
  makes a class of it.
"""

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from dent import DENT_PLUS, Dent
from dent.data import load
from dent.models import load as load_model


def accuracy(model: nn.Module, loader: "DataLoader[tuple[Tensor, ...]]") -> tuple[int, int]:
    """Return how many samples are answered rightly, and of how many."""
    right = total = 0
    with torch.inference_mode():
        for images, labels in loader:
            logits = model(images)
            answered = logits.isfinite().all(1)
            right += int(((logits.argmax(1) == labels) & answered).sum())
            total += len(labels)
    return right, total


def main(n: int = 64, batch_size: int = 32) -> dict[str, tuple[int, int]]:
    """Count what the static model and dent+ answer rightly of the first natural images."""
    images, labels = load("cifar10-sample").batch(range(n))
    loader = DataLoader(TensorDataset(images, labels), batch_size=batch_size)
    model = load_model("resnet-14-2-linf")
    counts = {
        "static": accuracy(model, loader),
        "dent+": accuracy(Dent(model, DENT_PLUS), loader),
    }
    for name, (right, total) in counts.items():
        print(f"{name:8}{right} of {total} natural images")
    return counts


if __name__ == "__main__":
    main()
