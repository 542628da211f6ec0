"""Attack a `Dent` with foolbox, through its ordinary forward.

    pip install "torch-dent[foolbox]"
    python examples/foolbox_attack.py

Before you quote the number:

- foolbox differentiates `defended(images)` only through the last forward, with the adapted
  parameters held constant. That gradient is misleading. So also submit the images that break the
  static model, as below, and use `dent evaluate --suite dynamic` for attacks that differentiate
  through the adaptation.
- dent adapts to the batch that you pass. Attacks with a fixed eps (FGSM, PGD) query the whole batch
  and are safe. Attacks that search sample by sample (DeepFool, boundary attacks) may report a
  success that occurred in a different batch. So submit the whole result once more, and count that.
- `PyTorchModel` moves the model to a GPU if there is one. Omit its `preprocessing` if the
  normalization is part of the model, as in all of `dent.models`.
"""

import foolbox
import torch
from torch import Tensor, nn

from dent import DENT_PLUS, Dent
from dent.data import load
from dent.models import load as load_model

EPS = 8 / 255


def attack(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return the adversarial images of PGD with 5 steps, inside the eps-ball and [0, 1]."""
    target = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    pgd = foolbox.attacks.LinfPGD(steps=5, rel_stepsize=0.25)
    adversarial: Tensor = pgd(target, images, labels, epsilons=EPS)[1]
    return adversarial


def main(n: int = 32) -> dict[str, int]:
    """Attack the static model and dent+, and count the correct predictions of each."""
    torch.manual_seed(0)
    images, labels = load("cifar10-sample").batch(range(n))
    model = load_model("resnet-14-2-linf")
    defended = Dent(model, DENT_PLUS)

    def correct(net: nn.Module, batch: Tensor) -> int:
        with torch.no_grad():
            return int((net(batch).argmax(1) == labels).sum())

    on_static = attack(model, images, labels)
    counts = {
        "static, attacked itself": correct(model, on_static),
        "dent+, attacked itself": correct(defended, attack(defended, images, labels)),
        "dent+, transferred from static": correct(defended, on_static),
    }
    for name, right in counts.items():
        print(f"{name:32}{right} of {len(labels)} right")
    return counts


if __name__ == "__main__":
    main()
