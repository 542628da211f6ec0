"""The accuracies that RobustBench's `benchmark()` prints for a `Dent`, and why they are no result.

    python examples/robustbench_benchmark.py

With CIFAR-10 in ./data and the package `autoattack` from its repository, this is one call:

    from robustbench import benchmark
    benchmark(Dent(model, DENT_PLUS), n_examples=128, dataset="cifar10", threat_model="Linf",
              eps=8 / 255, batch_size=128)

Its budget cannot be changed, and that package is on no package index. So this example does the same
with `pyautoattack` and a budget for a laptop: clean accuracy, standard AutoAttack, and the accuracy
on its images. A test compares it with RobustBench's own function.

- RobustBench's leaderboards accept no defense with an optimization loop in its forward pass. `Dent`
  has one: use `benchmark()` to compare, but do not submit the result.
- `benchmark()` runs AutoAttack, which drops samples once they are fooled and regroups the others.
  During the attack, a batch-dependent defense therefore sees other batches than in the final count.
- AutoAttack sees only the gradient of the last forward, so the accuracy that it leaves a dynamic
  defense is an upper bound. `dent evaluate --protocol published` is this evaluation plus the
  adversarial images of the static model. `--suite dynamic` is the evaluation to trust.
"""

import torch
from pyautoattack.autoattack import AutoAttack
from torch import Tensor, nn

from dent import DENT_PLUS, Dent
from dent.data import load
from dent.models import load as load_model

BATCH = 16


def clean_accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of `images` predicted correctly, batch by batch in their order."""
    with torch.no_grad():
        answers = torch.cat([model(batch).argmax(1) for batch in images.split(BATCH)])
    return float((answers == labels).float().mean())


def attack(model: nn.Module, images: Tensor, labels: Tensor, eps: float = 8 / 255) -> Tensor:
    """Return the images of standard AutoAttack with a cut budget; only fooled ones change."""
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
    """Benchmark the static model and dent+, and submit the static model's images to dent+ too."""
    images, labels = load("cifar10-sample").batch(range(n))
    model = load_model("resnet-14-2-linf")
    defended = Dent(model, DENT_PLUS)
    on_static = attack(model, images, labels)
    accuracies = {
        "static, natural": clean_accuracy(model, images, labels),
        "static, AutoAttack": clean_accuracy(model, on_static, labels),
        "dent+, natural": clean_accuracy(defended, images, labels),
        "dent+, AutoAttack": clean_accuracy(defended, attack(defended, images, labels), labels),
        "dent+, transferred from static": clean_accuracy(defended, on_static, labels),
    }
    for name, share in accuracies.items():
        print(f"{name:32}{share:.1%}")
    return accuracies


if __name__ == "__main__":
    main()
