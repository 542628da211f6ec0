"""A CLIP-like zero-shot classifier with dent, evaluated under the dynamic suite.

    pip install "torch-dent[hf]"
    python examples/clip_zero_shot.py                                   # random weights
    python examples/clip_zero_shot.py openai/clip-vit-base-patch32      # downloads 600 MB

An image encoder computes an embedding, and the prediction is the class with the nearest text
embedding. The text embeddings are fixed. Test-time defenses for CLIP adapt prompts, counter-perturb
the image or tune the encoder; each can be evaluated with `--defense my_code:factory`. Here, dent+
adapts the scales and shifts of the encoder's LayerNorms. From the command line:

    dent evaluate --model examples.clip_zero_shot:published --dataset cifar10 --n 256 \
        --batch-size 32 --defense dent+ --suite dynamic --norm linf --eps 1/255 --out runs/clip
"""

import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

import dent
from dent.data import load
from dent.evaluation import EvaluationResult
from dent.models import Normalize

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP
CLASSES = load("cifar10-sample").classes


class ZeroShot(nn.Module):
    """A classifier of images (n, 3, h, w) in [0, 1]; logits are scaled cosine similarities."""

    def __init__(self, clip: Any, text: Tensor) -> None:
        super().__init__()
        self.size = clip.config.vision_config.image_size
        self.normalize = Normalize(MEAN, STD)
        self.vision, self.projection = clip.vision_model, clip.visual_projection
        self.text = nn.Parameter(clip.logit_scale.detach().exp() * F.normalize(text.detach()))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits. The model resizes images itself, so eps refers to input pixels."""
        shown = F.interpolate(images, (self.size, self.size), mode="bicubic", antialias=True)
        seen = self.vision(pixel_values=self.normalize(shown)).pooler_output
        return F.linear(F.normalize(self.projection(seen)), self.text)


def published(name: str = "openai/clip-vit-base-patch32") -> nn.Module:
    """Return CLIP with weights from the Hugging Face hub and one prompt per CIFAR-10 class."""
    clip: Any = CLIPModel.from_pretrained(name, use_safetensors=True)
    prompts = [f"a photo of a {each}" for each in CLASSES]
    tokens: Any = CLIPTokenizer.from_pretrained(name)(prompts, padding=True, return_tensors="pt")
    return ZeroShot(clip, clip.text_projection(clip.text_model(**tokens).pooler_output)).eval()


def random() -> nn.Module:
    """Return a small CLIP with random weights, for 32 x 32 images, with 2 layers."""
    torch.manual_seed(0)
    layers = {"hidden_size": 48, "num_hidden_layers": 2, "intermediate_size": 64}
    text = {**layers, "vocab_size": 9, "bos_token_id": 0, "eos_token_id": 1}
    vision = {**layers, "image_size": 32, "patch_size": 8}
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    return ZeroShot(clip, torch.randn(len(CLASSES), 16)).eval()


def main(*names: str) -> EvaluationResult:
    """Evaluate dent+ on 8 images under the dynamic suite, and print the verdict."""
    model = published(*names) if names else random()
    images, labels = load("cifar10-sample").batch(range(8))
    result = dent.evaluate(model, images, labels, defense="dent+", norm="linf", eps="1/255")
    counts = {name: each.worst.served.correct for name, each in result.defenses.items()}
    print(f"Correct of 8 under attack: {counts}")
    print(getattr(result.defenses["dent+"].verdict, "sentence", "no verdict"))
    return result


if __name__ == "__main__":
    main(*sys.argv[1:])
