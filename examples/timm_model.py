"""A timm model with dent: what is adapted in a BatchNorm net and in a vision transformer.

    pip install "torch-dent[zoo]"
    python examples/timm_model.py

The weights here are random (`pretrained=False`, nothing is downloaded). So this shows how to wrap a
model and what adapts, but says nothing about accuracy. For published weights, use
`dent.models.load("timm/resnet50.a1_in1k")`, which includes the normalization of those weights.

- timm's models expect normalized images. Put the normalization *inside* the model that dent wraps:
  eps and all attacks refer to pixels in [0, 1].
- LayerNorm keeps no running statistics, so `statistics="test"` changes nothing in a transformer.
  `DENT_NOMINAL` still adapts its scales and shifts and its smoothing.
- dent refuses models whose first dimension is not the batch; timm has none.
"""

import timm
import torch
from torch import nn

from dent import DENT_PLUS, Dent
from dent.data import load
from dent.models import Normalize

MODELS = {  # small models for 32 x 32 images
    "resnet10t": {},
    "vit_tiny_patch16_224": {"img_size": 32, "patch_size": 8},
}


def wrap(name: str) -> Dent:
    """Return dent+ of a timm architecture with random weights and 10 classes."""
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=10, **MODELS[name])
    settings = timm.data.resolve_model_data_config(model)
    return Dent(nn.Sequential(Normalize(settings["mean"], settings["std"]), model), DENT_PLUS)


def main() -> dict[str, Dent]:
    """Adapt to 8 images, and print how many parameters moved and by how much."""
    images, _ = load("cifar10-sample").batch(range(8))
    defenses = {name: wrap(name) for name in MODELS}
    for name, defended in defenses.items():
        adaptation = defended.adapt(images)
        trained = dict(defended.model.named_parameters())
        moved = max((v - trained[k]).abs().max().item() for k, v in adaptation.parameters.items())
        print(f"{name}: {len(adaptation.parameters)} scales and shifts, moved by up to {moved:.3f}")
        first, last = adaptation.entropy.mean(1)[[0, -1]].tolist()
        print(f"  mean entropy before the first step {first:.4f}, before the last {last:.4f} nats")
    return defenses


if __name__ == "__main__":
    main()
