"""Models that return dicts, tuples or objects: the error suggests an adapter, which works."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dent import DENT_PLUS, Dent, Logits, ThreatModel, models
from dent.attacks import make
from dent.errors import DentError, InputError, UnsupportedModelError
from dent.outputs import described
from tests.small_models import make_tiny_cnn


@dataclass
class Output:
    logits: Tensor
    hidden: Tensor | None = None


Aux = namedtuple("Aux", ["logits", "aux"])


class Wrapped(nn.Module):
    """The tiny CNN, with its logits inside another kind of output."""

    def __init__(self, wrap: Any) -> None:
        super().__init__()
        self.net, self.wrap = make_tiny_cnn(), wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.net(x))


def images() -> Tensor:
    return torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


CERTAIN: dict[str, Any] = {
    "an object with .logits": Output,
    "a dict with logits": lambda y: {"logits": y, "features": y[:, :2]},
    "an ordered dict": lambda y: OrderedDict(loss=y.sum(), logits=y),
    "a dict with one tensor of two dimensions": lambda y: {"pred": y, "maps": y[:, :, None]},
    "a tuple with one": lambda y: (y, y[:, :, None]),
    "a tuple of one": lambda y: (y,),
    "a list": lambda y: [None, y],
    "a named tuple": lambda y: Aux(y, y * 0),
}
NAMED: dict[str, tuple[Any, str | int]] = {
    "a dict with two": (lambda y: {"a": y * 0, "b": y}, "b"),
    "a tuple with two": (lambda y: (y * 0, y), 1),
    "from the end": (lambda y: (y * 0, y), -1),
    "an attribute": (lambda y: Aux(y * 0, y), "aux"),
}


def offered(raised: pytest.ExceptionInfo[Any]) -> str:
    return str(raised.value).rpartition("dent.")[2].rstrip(".")


@pytest.mark.parametrize("wrap", CERTAIN.values(), ids=CERTAIN)
def test_logits_are_found_in_unambiguous_outputs(wrap: Any) -> None:
    x, model = images(), Wrapped(wrap).eval()
    with pytest.raises(DentError, match=r"dent\.Logits\(model\)") as raised:
        Dent(model, DENT_PLUS)(x)
    adapted = eval(offered(raised), {"Logits": Logits, "model": model})  # noqa: S307
    assert torch.equal(adapted(x), model.net(x))
    assert torch.equal(Dent(adapted, DENT_PLUS)(x), Dent(model.net, DENT_PLUS)(x))


@pytest.mark.parametrize(("wrap", "part"), NAMED.values(), ids=NAMED)
def test_ambiguous_outputs_need_the_name_of_the_part_with_the_logits(
    wrap: Any, part: str | int
) -> None:
    x, model = images(), Wrapped(wrap).eval()
    assert torch.equal(Logits(model, part)(x), model.net(x))
    if not (isinstance(part, str) and part == "aux"):
        with pytest.raises(UnsupportedModelError, match="no single tensor of logits"):
            Logits(model)(x)
        with pytest.raises(
            DentError, match=r"say which part has the logits: dent\.Logits\(model, "
        ):
            Dent(model, DENT_PLUS)(x)


@pytest.mark.parametrize("part", ["nothing", 7, -7])
@pytest.mark.parametrize("wrap", [lambda y: {"b": y}, lambda y: (y, y), Output])
def test_a_missing_part_is_refused(wrap: Any, part: str | int) -> None:
    with pytest.raises(UnsupportedModelError, match="no such part in the output of Wrapped"):
        Logits(Wrapped(wrap).eval(), part)(images())


def test_the_adapter_refuses_a_class_and_what_is_not_a_module() -> None:
    wrong: Any = nn.Linear
    with pytest.raises(InputError, match="got the class Linear: pass an instance of it"):
        Logits(wrong)
    wrong = "resnet"
    with pytest.raises(InputError, match=r"expected a torch\.nn\.Module, got str"):
        Logits(wrong)


def test_the_adapter_keeps_plain_logits_and_the_training_mode() -> None:
    model = make_tiny_cnn()
    assert torch.equal(Logits(model)(images()), model(images()))
    assert not Logits(model.eval()).training
    assert Logits(make_tiny_cnn().train()).training


@pytest.mark.parametrize("where", ["check", "attack"])
def test_errors_of_check_model_and_attacks_suggest_the_adapter(where: str) -> None:
    model, x = Wrapped(lambda y: {"logits": y}).eval(), images()
    labels, threat = torch.zeros(4, dtype=torch.int64), ThreatModel("linf", 0.1)
    ask = {
        "check": lambda: models.check_model(model, 10, x),
        "attack": lambda: make("pgd")(model, x, labels, threat, seed=0),
    }
    with pytest.raises(
        DentError, match=r"dict with 'logits' of shape \(\d, \d+\).*Logits\(model\)"
    ):
        ask[where]()


@pytest.mark.parametrize(
    ("output", "said"),
    [
        (torch.zeros(2, 10), "(2, 10)"),
        (
            (torch.zeros(2, 10), None),
            "tuple with element 0 of shape (2, 10), element 1 of type NoneType",
        ),
        ({"out": torch.zeros(2, 3), 4: []}, "dict with 'out' of shape (2, 3), 4 of type list"),
        (Output(torch.zeros(2, 10)), "Output with 'logits' of shape (2, 10)"),
        (
            [torch.zeros(1)] * 8,
            f"list with {', '.join(f'element {i} of shape (1,)' for i in range(6))}, and 2 more",
        ),
        ([], "list"),
        (None, "NoneType"),
    ],
)
def test_outputs_are_described_by_the_name_and_shape_or_type_of_each_part(
    output: Any, said: str
) -> None:
    assert described(output) == said


def test_an_output_without_tensors_gets_no_suggestion_of_the_adapter() -> None:
    with pytest.raises(DentError, match="got NoneType") as raised:
        Dent(Wrapped(lambda _: None).eval(), DENT_PLUS)(images())
    assert "Logits(" not in str(raised.value)


@pytest.mark.parametrize("key", ["loss", "logits"])
def test_an_output_of_scalars_is_described_without_suggestion_of_the_adapter(key: str) -> None:
    with pytest.raises(DentError, match=rf"got dict with '{key}' of shape \(\)\. ") as raised:
        Dent(Wrapped(lambda y: {key: y.sum()}).eval(), DENT_PLUS)(images())
    assert "Logits(" not in str(raised.value)
