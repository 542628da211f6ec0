"""What RobustBench's `benchmark()` would print for a `Dent`, and why it is not a result.

    python examples/robustbench_benchmark.py

With CIFAR-10 in ./data and the package `autoattack` from its repository it is one call:

    from robustbench import benchmark
    benchmark(Dent(model, DENT_PLUS), n_examples=128, dataset="cifar10", threat_model="Linf",
              eps=8 / 255, batch_size=128)

Its budget cannot be changed, and that package is on no index. So here is what it does, by
`pyautoattack` and with a budget for a laptop: natural accuracy, standard AutoAttack, and the
accuracy on what came of it. A test runs RobustBench's own function beside it.

- RobustBench's leaderboards accept no defense with an optimization loop in its forward pass. A
  `Dent` is one: use `benchmark()` to compare, never to submit.
- It runs AutoAttack, which drops samples once they are broken and regroups the rest. A
  batch-dependent defense then answers in other company than the final count asks it in.
- AutoAttack sees the gradient of the last forward alone. What it leaves of a dynamic defense is an
  upper bound: `dent evaluate --protocol published` is this evaluation with the static model's
  adversarial images replayed, `--suite dynamic` the one to believe.
"""

import torch
from pyautoattack.autoattack import AutoAttack
from torch import Tensor, nn

from dent import DENT_PLUS, Dent
from dent.data import load
from dent.models import load as load_model

BATCH = 16


def clean_accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of `images` answered rightly, batch by batch in their order."""
    with torch.no_grad():
        answers = torch.cat([model(batch).argmax(1) for batch in images.split(BATCH)])
    return float((answers == labels).float().mean())


def attack(model: nn.Module, images: Tensor, labels: Tensor, eps: float = 8 / 255) -> Tensor:
    """Return what standard AutoAttack, cut short, makes of the images that it breaks."""
    adversary = AutoAttack(model, norm="Linf", eps=eps, version="standard", seed=0)
    shorten(adversary)
    adversarial: Tensor
    adversarial, _ = adversary.run_standard_evaluation(images, labels, batch_size=BATCH)
    return adversarial


def shorten(adversary: AutoAttack) -> None:
    """Cut AutoAttack's budget to 3 of 100 iterations, 1 of 9 targets, 5 of 5000 queries."""
    for part in (adversary.apgd, adversary.apgd_targeted, adversary.fab):
        part.n_iter = 3
    adversary.apgd_targeted.n_target_classes = adversary.fab.n_target_classes = 1
    adversary.square.n_queries = 5


def main(n: int = 16) -> dict[str, float]:
    """Benchmark the static model and dent+, and replay on dent+ what broke the static model."""
    images, labels = load("cifar10-sample").batch(range(n))
    model = load_model("resnet-14-2-linf")
    defended = Dent(model, DENT_PLUS)
    on_static = attack(model, images, labels)
    accuracies = {
        "static, natural": clean_accuracy(model, images, labels),
        "static, AutoAttack": clean_accuracy(model, on_static, labels),
        "dent+, natural": clean_accuracy(defended, images, labels),
        "dent+, AutoAttack": clean_accuracy(defended, attack(defended, images, labels), labels),
        "dent+, replayed from static": clean_accuracy(defended, on_static, labels),
    }
    for name, share in accuracies.items():
        print(f"{name:30}{share:.1%}")
    return accuracies


if __name__ == "__main__":
    main()
