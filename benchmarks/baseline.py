"""dent as in the paper's listing (appendix A), and dent+ in the same style: plain and eager.

The benchmarks compare the package's own implementation with these.
"""

from copy import deepcopy
from typing import Final

import pytorch_optimizer
import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORMS: Final = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)


class PlainDent(nn.Module):
    """Batch-wise entropy minimization by torch.optim on a copy of the model."""

    def __init__(self, model: nn.Module, steps: int, *, test_statistics: bool) -> None:
        super().__init__()
        self.model = deepcopy(model).eval().requires_grad_(requires_grad=False)
        self.steps = steps
        self.parameters_to_adapt: list[nn.Parameter] = []
        for layer in self.model.modules():
            if isinstance(layer, NORMS):
                layer.requires_grad_(requires_grad=True)
                self.parameters_to_adapt += layer.parameters()
                if test_statistics and isinstance(layer, nn.modules.batchnorm._BatchNorm):
                    layer.track_running_stats = False
                    layer.running_mean = layer.running_var = None
        self.trained = [p.detach().clone() for p in self.parameters_to_adapt]

    def forward(self, x: Tensor) -> Tensor:
        """Adapt to the batch from the trained parameters, and predict."""
        with torch.no_grad():
            for parameter, value in zip(self.parameters_to_adapt, self.trained, strict=True):
                parameter.copy_(value)
        optimizer = torch.optim.Adam(self.parameters_to_adapt, lr=1e-3)
        with torch.enable_grad():
            for _ in range(self.steps):
                logits = self.model(x)
                loss = -(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean(0)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return self.model(x)  # type: ignore[no-any-return]


class SampleBatchNorm(nn.Module):
    """Batch normalization by running statistics, followed by one scale and shift per sample."""

    def __init__(self, layer: nn.modules.batchnorm._BatchNorm) -> None:
        super().__init__()
        self.layer = layer
        self.weight, self.bias = nn.Parameter(layer.weight), nn.Parameter(layer.bias)

    def start(self, samples: int) -> list[nn.Parameter]:
        """Reset scale and shift to the trained ones for every sample; return the new parameters."""
        self.weight, self.bias = (
            nn.Parameter(trained.detach().expand(samples, -1).clone())
            for trained in (self.layer.weight, self.layer.bias)
        )
        return [self.weight, self.bias]

    def forward(self, x: Tensor) -> Tensor:
        """Normalize, scale and shift the input."""
        statistics = (self.layer.running_mean, self.layer.running_var)
        normal = F.batch_norm(x, *statistics, eps=self.layer.eps)
        shape = (*self.weight.shape, *[1] * (x.dim() - 2))
        return normal * self.weight.reshape(shape) + self.bias.reshape(shape)


class PlainDentPlus(nn.Module):
    """dent+: sample-wise information maximization of a batch, by AdaMod."""

    def __init__(self, model: nn.Module, steps: int) -> None:
        super().__init__()
        self.model = deepcopy(model).eval().requires_grad_(requires_grad=False)
        self.steps = steps
        self.layers: list[SampleBatchNorm] = []
        for parent in [*self.model.modules()]:
            for name, child in [*parent.named_children()]:
                if isinstance(child, nn.modules.batchnorm._BatchNorm):
                    self.layers.append(SampleBatchNorm(child))
                    setattr(parent, name, self.layers[-1])

    def start(self, samples: int) -> list[nn.Parameter]:
        """Reset all scales and shifts to the trained ones; return the new parameters."""
        return [each for layer in self.layers for each in layer.start(samples)]

    def forward(self, x: Tensor) -> Tensor:
        """Adapt every sample from the trained parameters, and predict."""
        parameters = self.start(len(x))
        optimizer = pytorch_optimizer.AdaMod(parameters, lr=6e-3, betas=(0.99, 0.999, 0.6))
        with torch.enable_grad():
            for _ in range(self.steps):
                p = self.model(x.detach()).softmax(1)
                mean = p.mean(0)
                loss = (mean * (mean + 1e-5).log()).sum() - (p * (p + 1e-5).log()).sum(1).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return self.model(x)  # type: ignore[no-any-return]
