"""Train a purifier for a classifier, and put it in front of the classifier.

    python examples/train_purifier.py                         # a few steps on bundled images
    python examples/train_purifier.py cifar10 400             # as for the bundled denoiser

The denoiser g learns to restore the logits that the model f has without an attack. It minimizes
|f(x̃ - g(x̃)) - f(x)| for FGSM images x̃ of f from a random start. Afterwards:

    Purifier(model, denoiser)                                  # a defense, for `dent.evaluation`

Attacks that follow the gradient through g show how robust such a defense is:

    dent evaluate --suite dynamic --model resnet-14-2-linf --dataset cifar10 --n 256 \
        --norm linf --eps 8/255 --defense dent.defenses:Purifier
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from dent.data import load
from dent.defenses import Denoiser, Purifier
from dent.models import load as load_model

EPS, BATCH = 8 / 255, 64


def fgsm(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return FGSM images: one sign step of 1.25 eps from a random start in the eps-ball."""
    delta = torch.empty_like(x).uniform_(-EPS, EPS).requires_grad_()
    loss = F.cross_entropy(model((x + delta).clamp(0, 1)), y)
    (gradient,) = torch.autograd.grad(loss, delta)
    step = (delta.detach() + 1.25 * EPS * gradient.sign()).clamp(-EPS, EPS)
    return (x + step).clamp(0, 1)


def train(model: nn.Module, dataset: str = "cifar10-sample", steps: int = 5) -> Denoiser:
    """Return a denoiser for `model`, trained by Adam with a linearly decaying learning rate."""
    torch.manual_seed(0)
    images = load(dataset, "train" if dataset == "cifar10" else "test")
    denoiser = Denoiser()
    for parameter in denoiser[-1].parameters():  # initially, g is 0
        nn.init.zeros_(parameter)
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, steps)
    for step in range(steps):
        chosen = torch.randint(len(images), (BATCH,)).tolist()
        x, y = images.batch(chosen)
        attacked = fgsm(model, x, y)
        with torch.no_grad():
            wanted = model(x)
        loss = (model(attacked - denoiser(attacked)) - wanted).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 20 == 0 or step == steps - 1:
            print(f"step {step}: {float(loss.detach()):.3f}", flush=True)
    return denoiser


def main() -> None:
    """Train and save a denoiser, and count the correct predictions on a few images."""
    model = load_model("resnet-14-2-linf").requires_grad_(False)
    denoiser = train(model, sys.argv[1], int(sys.argv[2])) if sys.argv[2:] else train(model)
    out = Path("denoiser.safetensors")
    save_file(denoiser.half().state_dict(), out)
    x, y = load("cifar10-sample").batch(range(32))
    right = Purifier(model, denoiser.float())(x).argmax(1) == y
    print(f"{out}: {int(right.sum())} of {len(y)} images right without an attack")


if __name__ == "__main__":
    main()
