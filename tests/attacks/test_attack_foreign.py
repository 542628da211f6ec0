"""Tests of attacks from other libraries, on whole batches and in an evaluation."""

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dent import Dent, DentConfig
from dent.attacks import Foreign, from_adv_lib, from_foolbox
from dent.errors import ConfigError, MissingExtraError
from dent.evaluation import Settings, Subject, evaluate, load_run, verify
from dent.evaluation.attack_specs import attack_of, attack_spec
from dent.threat import NORMS, Norm, ThreatModel
from tests.attacks.attack_toys import Company, Recorder, linear, small_images
from tests.evaluation.subjects import make_model, make_subject

LINF = ThreatModel("linf", 0.05)
PGD = from_foolbox("LinfPGD", steps=5, rel_stepsize=0.3)


def answered(defense: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = defense(x).argmax(dim=1)
    return found


def step_linf(
    model: Any, inputs: Tensor, labels: Tensor, eps: float, targeted: bool = False, steps: int = 3
) -> Tensor:
    """An attack with the signature of adv-lib, which leaves the ball and calls `backward`."""
    del targeted
    x = inputs.clone()
    for _ in range(steps):
        leaf = x.detach().requires_grad_()
        F.cross_entropy(model(leaf), labels).backward()
        assert leaf.grad is not None
        x = (leaf + 2 * eps * leaf.grad.sign()).clamp(0, 1)
    return x.detach()


def dropping(model: Any, inputs: Tensor, labels: Tensor, eps: float) -> Tensor:
    """An attack that leaves out the first member of the batch."""
    del labels, eps
    model(inputs[1:])
    return inputs


@pytest.fixture
def adv_lib(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a fake adv-lib in place, whether the real one is installed or not."""
    package, attacks = types.ModuleType("adv_lib"), types.ModuleType("adv_lib.attacks")
    vars(attacks).update(step_linf=step_linf, dropping=dropping)
    monkeypatch.setitem(sys.modules, "adv_lib", package)
    monkeypatch.setitem(sys.modules, "adv_lib.attacks", attacks)


def test_foolbox_attack_queries_whole_batches_and_its_claims_are_true() -> None:
    model, x = linear(), small_images()
    y = answered(model, x)
    for dependent in (False, True):
        recorder = Recorder(model, x, batch_dependent=dependent)
        found = PGD(recorder, x, y, LINF, seed=0)
        assert recorder.sizes  # the recorder fails on a row in a wrong place
        assert found.queries == len(recorder.sizes)
        assert found.backwards == 5
        assert not LINF.check(found.adversarial, x).any()
        assert int(found.fooled.sum()) > 0
        assert torch.equal(answered(model, found.adversarial) != y, found.fooled)


def test_foolbox_attack_fools_every_member_that_foolbox_itself_fools() -> None:
    foolbox = pytest.importorskip("foolbox")
    model, x = linear(), small_images()
    y = answered(model, x)
    attack = foolbox.attacks.LinfPGD(steps=5, rel_stepsize=0.3, random_start=False)
    target = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    alone = attack(target, x, y, epsilons=LINF.eps)[1]
    ours = from_foolbox("LinfPGD", steps=5, rel_stepsize=0.3, random_start=False)
    wrong = answered(model, alone) != y
    # Members that foolbox fooled only for some steps may be fooled here, too.
    assert wrong.any()
    assert ours(model, x, y, LINF, seed=0).fooled[wrong].all()


@pytest.mark.usefixtures("adv_lib")
@pytest.mark.parametrize("attack", [PGD, from_adv_lib("step_linf")], ids=lambda each: each.library)
def test_foreign_attack_is_repeatable_and_changes_no_model_or_random_state(attack: Foreign) -> None:
    model, x = linear(), small_images()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    kept, state = x.clone(), torch.get_rng_state()
    first, again = (attack(model, x, answered(model, x), LINF, seed=3) for _ in range(2))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(x, kept)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.adversarial, again.adversarial)


@pytest.mark.usefixtures("adv_lib")
def test_foreign_images_are_projected_into_the_ball_and_claims_hold_there() -> None:
    model, x = linear(), small_images(8)
    y = answered(model, x)
    found = from_adv_lib("step_linf")(model, x, y, LINF, seed=0)
    assert not LINF.check(found.adversarial, x).any()
    assert torch.equal(answered(model, found.adversarial) != y, found.fooled)
    company = Company(model)
    y = answered(company, x)
    whole = from_adv_lib("step_linf")(company, x, y, LINF, seed=0)
    assert torch.equal(answered(company, whole.adversarial) != y, whole.fooled)


@pytest.mark.usefixtures("adv_lib")
@pytest.mark.parametrize(
    ("attack", "threat", "match"),
    [
        (from_adv_lib("dropping"), LINF, r"asks about images \(4, 3, 6, 6\) of a batch \(5,"),
        (from_adv_lib("step_linff"), LINF, r"no attack 'step_linff'\. Did you mean 'step_linf'"),
        (from_adv_lib("step_linf", step=3), LINF, r"takes no 'step'\. Did you mean 'steps'"),
        (from_adv_lib("step_linf"), ThreatModel("linf", 0.1, (-1, 2)), r"pixels in \[0, 1\]"),
        (from_foolbox("LinfPDG"), LINF, r"foolbox has no attack 'LinfPDG'\. Did you mean"),
        (from_foolbox("LinfPGD", step=3), LINF, "unexpected keyword argument 'step'"),
        (from_foolbox("L2PGD"), LINF, r"made for another norm than linf \(l2\)"),
    ],
)
def test_foreign_attacks_that_cannot_run_are_refused(
    attack: Foreign, threat: ThreatModel, match: str
) -> None:
    x = small_images()
    with pytest.raises(ConfigError, match=match):
        attack(linear(), x, answered(linear(), x), threat, seed=0)


@pytest.mark.parametrize(
    ("attack", "says"),
    [(PGD, r"torch-dent\[foolbox\]"), (from_adv_lib("apgd"), "pip install adv-lib")],
)
def test_missing_library_error_says_how_to_install_it(
    attack: Foreign, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("foolbox", "foolbox.attacks", "adv_lib", "adv_lib.attacks"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=says):
        attack.queries(3)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ["InversionAttack", "GaussianBlurAttack"])
def test_foolbox_attack_without_a_distance_gets_that_of_the_norm(name: str, norm: Norm) -> None:
    pytest.importorskip("foolbox")
    model, x = linear(), small_images()
    y = answered(model, x)
    reach = {"linf": 1.0, "l2": 9.0, "l1": 90.0}[norm]
    keywords: dict[str, Any] = {"steps": 5, "channel_axis": 1} if name.startswith("G") else {}
    result = from_foolbox(name, **keywords)(model, x, y, ThreatModel(norm, reach), seed=0)
    assert torch.equal(answered(model, result.adversarial) != y, result.fooled)
    if name == "InversionAttack":
        assert torch.equal(result.fooled, answered(model, 1 - x) != y)


def test_foolbox_attack_that_needs_a_package_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("foolbox")
    monkeypatch.setitem(sys.modules, "numba", None)
    x = small_images()
    attack = from_foolbox("L1BrendelBethgeAttack")
    with pytest.raises(MissingExtraError, match="L1BrendelBethgeAttack of foolbox needs numba"):
        attack(linear(), x, answered(linear(), x), ThreatModel("l1", 1.0), seed=0)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"library": "cleverhans"}, "library must be one of 'foolbox', 'adv-lib'"),
        ({"attack": "os.system"}, "must be the name of an attack, got 'os.system'"),
        ({"keywords": {"steps": object()}}, "so that a record can say them, got 'steps'"),
    ],
)
def test_invalid_fields_of_a_foreign_attack_are_refused(values: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        Foreign(**({"library": "foolbox", "attack": "LinfPGD"} | values))


def test_foreign_attack_can_be_compared_hashed_lengthened_and_recorded() -> None:
    assert Foreign.from_dict(json.loads(json.dumps(PGD.to_dict()))) == PGD
    assert hash(PGD) == hash(from_foolbox("LinfPGD", rel_stepsize=0.3, steps=5))
    longer = PGD.longer()
    assert longer == from_foolbox("LinfPGD", steps=10, rel_stepsize=0.3)
    assert from_foolbox("LinfFastGradientAttack").longer() is None
    spec = attack_spec(PGD, LINF)
    assert (spec.attack, spec.kind) == (None, "dent.attacks.foreign.Foreign")
    assert spec.settings["keywords"] == {"steps": 5, "rel_stepsize": 0.3}
    assert attack_of(spec) == PGD


def test_run_with_a_foreign_attack_is_recorded_and_verified(tmp_path: Path) -> None:
    model = make_model()
    subject: Subject = make_subject(
        {"dent": Dent(model, DentConfig(steps=1))}, [PGD], model=model, eps="8/255"
    )
    result = evaluate(subject, Settings(n=8, batch_size=4), out=tmp_path / "run")
    for defense in result.defenses.values():
        found = defense.attack("foolbox-LinfPGD")
        assert found.claimed == found.served
        assert found.served.correct < defense.natural.correct
        assert (found.queries, found.backwards) <= (2 * PGD.queries(4)[0], 2 * PGD.queries(4)[1])
    assert load_run(tmp_path / "run").run.spec.attacks[0].versions.keys() == {"foolbox"}
    assert verify(tmp_path / "run", subject).problems == ()
