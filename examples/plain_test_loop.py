"""A plain PyTorch test loop with a defense: what changes, and what must not.

    python examples/plain_test_loop.py

The loop is the usual one. With a dynamic defense, remember:

- The defense adapts to each batch of the DataLoader, so `batch_size` is part of the defense. If the
  defense is batch-dependent, the order is too: another order gives another accuracy.
- `torch.no_grad()` and `torch.inference_mode()` around the loop are fine, because the defense
  enables the gradients that it needs. `.eval()` is not needed: a `Dent` always computes in eval
  mode.
- In a last batch of one sample, information maximization does nothing, and batch statistics are
  noise. `drop_last=True` would leave samples out; choose a batch size that divides their number.
- A row of NaN is not a prediction (the input was not finite). Count it as wrong, because `argmax`
  would still return a class.
"""

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from dent import DENT_PLUS, Dent
from dent.data import load
from dent.models import load as load_model


def accuracy(model: nn.Module, loader: "DataLoader[tuple[Tensor, ...]]") -> tuple[int, int]:
    """Return the number of correct predictions, and the number of samples."""
    right = total = 0
    with torch.inference_mode():
        for images, labels in loader:
            logits = model(images)
            answered = logits.amax(1).isfinite()
            right += int(((logits.argmax(1) == labels) & answered).sum())
            total += len(labels)
    return right, total


def main(n: int = 64, batch_size: int = 32) -> dict[str, tuple[int, int]]:
    """Count the correct predictions of the static model and dent+ on the first natural images."""
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
