"""dent as the paper's listing has it (appendix A): plain, eager, on real parameters.

The yardstick that the package's own implementation is measured against.
"""

from copy import deepcopy

import torch
from torch import Tensor, nn


class PlainDent(nn.Module):
    """Batch-wise entropy minimization by torch.optim on a copy of the model."""

    def __init__(self, model: nn.Module, steps: int, *, test_statistics: bool) -> None:
        super().__init__()
        self.model = deepcopy(model).eval().requires_grad_(requires_grad=False)
        self.steps = steps
        self.parameters_to_adapt = []
        for layer in self.model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.requires_grad_(requires_grad=True)
                self.parameters_to_adapt += [layer.weight, layer.bias]
                if test_statistics:
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
