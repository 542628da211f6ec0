"""Tests of MeanSparse against code by hand: sparsified activations, statistics, gradients."""

from collections import Counter
from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import get_model

from dent import ConfigError, InputError, UnsupportedModelError
from dent.attacks.adaptive import Rung, certificate
from dent.defenses import MeanSparse


class Net(nn.Module):
    """Convolutions, BatchNorm, a ReLU module that is used twice, and a linear layer before GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.second = nn.Conv2d(3, 5, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.hidden = nn.Linear(5, 4)
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.first(x)))
        x = self.act(self.second(x))
        x = self.hidden(x.permute(0, 2, 3, 1))  # channels last, as in ConvNeXt
        logits: Tensor = self.last(F.gelu(x).mean((1, 2)))
        return logits


@pytest.fixture
def net() -> Net:
    net = Net().double()
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(0, 0.6, generator=generator)
        running = dict(net.norm.named_buffers())
        running["running_mean"].normal_(0, 0.1, generator=generator)
        running["running_var"].uniform_(0.5, 1.5, generator=generator)
    return net.eval()


@pytest.fixture
def batch() -> Tensor:
    return torch.rand(5, 2, 4, 4, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def sparse(values: Tensor, mean: Tensor, deviation: Tensor, alpha: float) -> Tensor:
    """Return sparsified values (N, channels, ...): the oracle, one value at a time."""
    values = values.detach().contiguous()
    found = values.clone()
    for index in range(values.numel()):
        channel = (index // values[0, 0].numel()) % values.shape[1]
        value = float(values.flatten()[index])
        if abs(value - float(mean[channel])) <= alpha * float(deviation[channel]):
            found.view(-1)[index] = mean[channel]
    return found


def statistics(values: Tensor) -> tuple[Tensor, Tensor]:
    flat = values.transpose(0, 1).flatten(1)
    return flat.mean(1), flat.std(1, correction=0)


@torch.no_grad()
def by_hand(net: Net, x: Tensor, images: Tensor, alpha: float) -> Tensor:
    """Return the logits of `Net`, sparsified by its statistics on other images: the oracle."""
    seen = net.norm(net.first(images))
    x = F.relu(sparse(net.norm(net.first(x)), *statistics(seen), alpha))
    seen = net.second(F.relu(seen))
    x = F.relu(sparse(net.second(x), *statistics(seen), alpha))
    seen = net.hidden(F.relu(seen).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    x = sparse(net.hidden(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), *statistics(seen), alpha)
    return net.last(F.gelu(x).mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("alpha", [0.05, 0.5, 2.0])
def test_with_images_all_activations_are_sparsified_by_their_statistics(
    net: Net, batch: Tensor, alpha: float
) -> None:
    images = torch.rand(7, 2, 4, 4, generator=torch.Generator().manual_seed(3)).double()
    expected = by_hand(net, batch, images, alpha)
    torch.testing.assert_close(MeanSparse(net, alpha=alpha, images=images)(batch), expected)
    batches = MeanSparse(net, alpha=alpha, images=iter(images.split(3)))
    torch.testing.assert_close(batches(batch), expected)
    assert not torch.allclose(net(batch), expected, atol=1e-6)
    assert batches.settings == {"alpha": alpha, "statistics": "images"}


def test_without_images_only_batch_norm_outputs_are_sparsified(net: Net, batch: Tensor) -> None:
    with torch.no_grad():
        net.norm.weight.neg_()
    defense = MeanSparse(net, alpha=0.5)
    mean, deviation = net.norm.bias.detach(), net.norm.weight.detach().abs()
    x = F.relu(sparse(net.norm(net.first(batch)), mean, deviation, 0.5))
    x = F.relu(net.second(x)).permute(0, 2, 3, 1)
    torch.testing.assert_close(defense(batch), net.last(F.gelu(net.hidden(x)).mean((1, 2))))
    assert not torch.allclose(defense(batch), net(batch), atol=1e-6)
    assert defense.settings == {"alpha": 0.5, "statistics": "batch-norm"}


@pytest.mark.parametrize("with_images", [False, True])
def test_output_of_conv1d_is_sparsified_along_axis_1(
    with_images: bool,
) -> None:
    torch.manual_seed(0)
    convolution, norm = nn.Conv1d(2, 4, 3).double(), nn.BatchNorm1d(4).double().eval()
    norm.weight.data.uniform_(0.5, 1.5)
    norm.bias.data.normal_()
    net = nn.Sequential(convolution, norm, nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6, 3).double())
    x = torch.rand(3, 2, 8, dtype=torch.float64)
    made = norm(convolution(x))
    mean, deviation = statistics(made) if with_images else (norm.bias, norm.weight.abs())
    expected = net[3:](F.relu(sparse(made, mean, deviation, 0.5)))
    defense = MeanSparse(net.eval(), alpha=0.5, images=x if with_images else None)
    torch.testing.assert_close(defense(x), expected)


class InPlace(nn.Module):
    """A model with a shortcut that is added in place or out of place."""

    def __init__(self, net: Net, in_place: bool) -> None:
        super().__init__()
        self.net, self.in_place = net, in_place

    def forward(self, x: Tensor) -> Tensor:
        first = F.relu(self.net.norm(self.net.first(x)))
        second = self.net.norm(first)
        if self.in_place:
            second += first
        else:
            second = second + first
        logits: Tensor = self.net.second(F.relu(second)).mean((2, 3))
        return logits


@pytest.mark.parametrize("alpha", [0.5, 100.0])
def test_shortcut_added_in_place_gives_the_same_logits_as_out_of_place(
    net: Net, batch: Tensor, alpha: float
) -> None:
    ways = [MeanSparse(InPlace(net, in_place), alpha=alpha)(batch) for in_place in (True, False)]
    torch.testing.assert_close(*ways)


Act = Callable[[Tensor], Tensor]


class Statement(nn.Module):
    """A model that activates in place and does not use the result, or that activates by value."""

    def __init__(self, net: Net, act: Act, *, in_place: bool) -> None:
        super().__init__()
        self.net, self.act, self.in_place = net, act, in_place

    def forward(self, x: Tensor) -> Tensor:
        x = self.net.norm(self.net.first(x))
        if self.in_place:
            self.act(x)
        else:
            x = self.act(x)
        logits: Tensor = self.net.second(x).mean((2, 3))
        return logits


@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize("with_images", [False, True])
@pytest.mark.parametrize(
    ("in_place", "by_value"),
    [
        (Tensor.relu_, F.relu),
        (torch.relu_, F.relu),
        (lambda h: F.relu(h, inplace=True), F.relu),
        (lambda h: F.elu(h, 1.0, True), F.elu),
        (lambda h: F.hardswish(h, inplace=True), F.hardswish),
        (nn.SiLU(inplace=True), nn.SiLU()),
        (nn.ReLU6(inplace=True), nn.ReLU6()),
        (nn.Threshold(0.1, 0.2, inplace=True), nn.Threshold(0.1, 0.2)),
        (Tensor.tanh_, torch.tanh),
    ],
)
def test_an_in_place_activation_whose_result_is_not_used_is_the_same_as_by_value(
    net: Net, batch: Tensor, in_place: Act, by_value: Act, with_images: bool, differentiable: bool
) -> None:
    def answer(model: nn.Module) -> tuple[Tensor, Tensor]:
        x = batch.clone().requires_grad_()
        defense = MeanSparse(model.eval(), alpha=0.5, images=batch if with_images else None)
        logits = defense.predict(x, defense.adapt(x, differentiable=differentiable))
        return logits, torch.autograd.grad(logits.square().sum(), x)[0]

    expected = answer(Statement(net, by_value, in_place=False))
    torch.testing.assert_close(answer(Statement(net, in_place, in_place=True)), expected)


def test_very_large_alpha_replaces_values_many_deviations_from_the_mean(
    net: Net, batch: Tensor
) -> None:
    far = 20 * batch
    expected = by_hand(net, far, batch, alpha=100)
    torch.testing.assert_close(MeanSparse(net, alpha=100, images=batch)(far), expected)
    assert not torch.allclose(by_hand(net, far, batch, alpha=5), expected, atol=1e-3)


@pytest.mark.parametrize("with_images", [False, True])
@pytest.mark.parametrize(
    "act",
    [
        nn.ReLU(),
        nn.ReLU6(),
        F.relu6,
        nn.Hardtanh(-0.3, 0.4),
        nn.Threshold(0.1, 0.2),
        nn.LeakyReLU(0.1),
        nn.PReLU(3, dtype=torch.float64),
        nn.RReLU(),
        nn.ELU(),
        nn.CELU(),
        nn.SELU(),
        nn.GELU("tanh"),
        nn.SiLU(),
        nn.Hardswish(),
        nn.Mish(),
        nn.Softplus(),
        nn.Softsign(),
        nn.Tanh(),
    ],
)
def test_every_activation_function_of_a_conv_net_is_sparsified(
    net: Net, batch: Tensor, act: Act, with_images: bool
) -> None:
    made = net.norm(net.first(batch))
    found = statistics(made) if with_images else (net.norm.bias, net.norm.weight.abs())
    model = Statement(net, act, in_place=False).eval()
    answer = act(sparse(made, *found, 0.5))
    expected = net.second(answer).mean((2, 3))
    defense = MeanSparse(model, alpha=0.5, images=batch if with_images else None)
    torch.testing.assert_close(defense(batch), expected)
    assert not torch.allclose(model(batch), expected, atol=1e-6)


class Sparsified(nn.Module):
    """An activation module of an existing net, with its input sparsified: the oracle."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.act = act
        self.found: tuple[Tensor, Tensor] | None = None
        self.measuring = True

    def forward(self, x: Tensor) -> Tensor:
        if self.measuring:
            self.found = statistics(x)
        mean, deviation = (each.view(1, -1, *[1] * (x.dim() - 2)) for each in self.found or ())
        near = (x - mean).abs() <= 0.5 * deviation
        return self.act(x if self.measuring else torch.where(near, mean, x))  # type: ignore[no-any-return]


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "acts"),
    [
        ("mobilenet_v2", {"ReLU6": 35}),
        ("mobilenet_v3_small", {"Hardswish": 19, "ReLU": 14}),
    ],
)
def test_mobile_nets_are_sparsified_at_every_activation(name: str, acts: dict[str, int]) -> None:
    torch.manual_seed(0)
    plain = get_model(name, num_classes=10).double()
    images, x = torch.rand(2, 4, 3, 32, 32, dtype=torch.float64)
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    plain(images)  # otherwise the logits of random weights vanish
    plain.eval()
    oracle, counted = deepcopy(plain), Counter[str]()
    for module in list(oracle.modules()):
        for child_name, child in list(module.named_children()):
            if type(child) in (nn.ReLU, nn.ReLU6, nn.Hardswish):
                setattr(module, child_name, Sparsified(child))
                counted[type(child).__name__] += 1
    assert counted == acts
    oracle(images)
    for module in oracle.modules():
        if isinstance(module, Sparsified):
            module.measuring = False
    expected = oracle(x)
    torch.testing.assert_close(MeanSparse(plain, alpha=0.5, images=images)(x), expected)
    assert not torch.allclose(plain(x), expected, rtol=0.1)


class Swish(torch.autograd.Function):
    """SiLU as RobustBench's Wide-ResNets compute it."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


@pytest.mark.parametrize("with_images", [False, True])
@pytest.mark.parametrize(
    "act",
    [
        lambda h: h * torch.sigmoid(h),
        lambda h: h.sigmoid().mul(h),
        lambda h: torch.mul(h, other=F.sigmoid(h)),
        lambda h: h.mul_(h.sigmoid()),
        lambda h: h * F.hardsigmoid(h),
        Swish.apply,
    ],
)
def test_silu_that_the_model_computes_itself_is_refused(
    net: Net, batch: Tensor, act: Act, with_images: bool
) -> None:
    model = Statement(net, lambda h: F.relu(act(h)), in_place=False).eval()
    with pytest.raises(UnsupportedModelError, match=r"\(5, 3, 4, 4\).*nn\.SiLU\(\)"):
        MeanSparse(model, images=batch if with_images else None)(batch)


@pytest.mark.parametrize(
    "gate", [nn.Sigmoid(), nn.Hardsigmoid(), nn.Hardsigmoid(inplace=True), Tensor.sigmoid_]
)
def test_gates_are_not_changed(net: Net, batch: Tensor, gate: Act) -> None:
    def gated(h: Tensor) -> Tensor:
        return F.relu(h) * gate(h.mean((2, 3), keepdim=True))

    mean, deviation = net.norm.bias.detach(), net.norm.weight.detach().abs()
    made = net.norm(net.first(batch))
    h = F.relu(sparse(made, mean, deviation, 0.5)) * gate(made.mean((2, 3), keepdim=True))
    defense = MeanSparse(Statement(net, gated, in_place=False).eval(), alpha=0.5)
    torch.testing.assert_close(defense(batch), net.second(h).mean((2, 3)))


def test_very_large_alpha_gives_all_images_the_same_logits(net: Net, batch: Tensor) -> None:
    logits = MeanSparse(net, alpha=1e6, images=batch)(batch)
    torch.testing.assert_close(logits, logits[:1].expand_as(logits))


def test_gradient_passes_straight_through_and_the_exact_gradient_is_zero(
    net: Net, batch: Tensor
) -> None:
    defense = MeanSparse(net, alpha=1e6, images=batch)
    x = batch.clone().requires_grad_()
    (through,) = torch.autograd.grad(defense(x).square().sum(), x)
    assert bool((through.flatten(1).abs().amax(1) > 0).all())
    exactly = defense.predict(x, defense.adapt(x, differentiable=True))
    torch.testing.assert_close(exactly, defense(x))
    (exact,) = torch.autograd.grad(exactly.square().sum(), x)
    assert torch.equal(exact, torch.zeros_like(exact))
    nothing_near = MeanSparse(net, alpha=1e-9, images=batch)
    ways = [torch.autograd.grad(f(x).square().sum(), x)[0] for f in (nothing_near, net)]
    torch.testing.assert_close(*ways)


def test_exact_gradient_is_certified_but_straight_through_gradient_is_not(
    net: Net, batch: Tensor
) -> None:
    defense, y = MeanSparse(net, alpha=0.1, images=batch), torch.tensor([0, 1, 2, 0, 1])
    assert certificate(defense, batch, y).passed
    # The straight-through gradient is made for attacks, and is not exact.
    assert not certificate(defense, batch, y, rung=Rung("stop-gradient")).passed


def test_statistics_can_be_measured_in_inference_mode(net: Net, batch: Tensor) -> None:
    expected = MeanSparse(net, images=batch)(batch)
    with torch.inference_mode():
        defense = MeanSparse(net, images=batch.clone())
    torch.testing.assert_close(defense(batch), expected)


def test_model_is_not_changed_and_unwrap_returns_it(net: Net, batch: Tensor) -> None:
    before, answer = {k: v.clone() for k, v in net.state_dict().items()}, net(batch)
    defense = MeanSparse(net, images=batch)
    defense(batch)
    assert defense.unwrap() is net
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(net(batch), answer)


class Plain(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :3]


class Rectified(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


class Wandering(nn.Module):
    """A model whose number of channels depends on the batch size."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x.flatten(1)[:, : 2 + len(x)])[:, :2]


def test_models_and_images_that_cannot_be_sparsified_are_refused(batch: Tensor) -> None:
    with pytest.raises(UnsupportedModelError, match="calls no activation function"):
        MeanSparse(Plain().eval(), images=batch)
    with pytest.raises(UnsupportedModelError, match="there are no images"):
        MeanSparse(Rectified().eval(), images=[])
    with pytest.raises(UnsupportedModelError, match=r"images=\.\.\."):
        MeanSparse(Rectified().eval())(batch)
    with pytest.raises(UnsupportedModelError, match="no common mean"):
        MeanSparse(Wandering().eval(), images=[batch, batch[:2]])
    with pytest.raises(UnsupportedModelError, match="number 1 takes 4 channels"):
        MeanSparse(Wandering().eval(), images=batch)(batch[:2])


@pytest.mark.parametrize("alpha", [0, -1.0, True, float("nan"), "0.2"])
def test_invalid_alpha_is_refused(alpha: float, net: Net) -> None:
    with pytest.raises(ConfigError, match="alpha must be"):
        MeanSparse(net, alpha=alpha)


def test_adaptation_to_another_batch_size_is_refused(net: Net, batch: Tensor) -> None:
    defense = MeanSparse(net)
    with pytest.raises(InputError, match="very batch"):
        defense.predict(batch[:3], defense.adapt(batch))
