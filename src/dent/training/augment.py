"""Random crops and flips of a batch, drawn from torch's global generator."""

import torch
import torch.nn.functional as F
from torch import Tensor


def augment(x: Tensor, *, pad: int, flip: bool) -> Tensor:
    """Pad every image with black and crop it at a random place, and flip images at random.

    Args:
        x: images (N, C, H, W).
        pad: black pixels added on each side before cropping back to H x W; 0 does not crop.
        flip: whether to mirror each image horizontally with probability 1/2.

    Returns:
        A new batch of x's shape.
    """
    n, _, height, width = x.shape
    if pad:
        wide = F.pad(x, (pad, pad, pad, pad))
        down, right = torch.randint(0, 2 * pad + 1, (2, n, 1))
        rows = (down + torch.arange(height)).to(x.device)
        columns = (right + torch.arange(width)).to(x.device)
        samples = torch.arange(n, device=x.device)
        x = wide[samples[:, None, None], :, rows[:, :, None], columns[:, None, :]]
        x = x.permute(0, 3, 1, 2)
    if flip:
        mirrored = (torch.rand(n) < 0.5).to(x.device)
        x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
    return x.contiguous()
