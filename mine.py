import torch
from torch import nn
def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)).eval()
class Bare:
    batch_dependent = False
    def __init__(self, model): self.model = model
    def adapt(self, x): return None
    def predict(self, x, a): return self.model(x)
def other(model):
    torch.manual_seed(1)
    return small()
class InPlace(nn.Module):
    """naive tent that writes the model it was given"""
    batch_dependent = True
    def __init__(self, model):
        super().__init__(); self.model = model
    def adapt(self, x):
        with torch.no_grad():
            for p in self.model.parameters(): p.mul_(1.01)
    def predict(self, x, a): return self.model(x)
    def forward(self, x): return self.predict(x, self.adapt(x))
