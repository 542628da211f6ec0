"""Tests of what every attack must do, run for all attacks."""

import random
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dent import DENT, Dent, SmoothingConfig
from dent.attacks import AttackResult, make, names
from dent.attacks.adaptive import ADAPTIVE, NOT_AVAILABLE, Among
from dent.attacks.adaptive.standing import MemberSelection
from dent.threat import NORMS, Norm, ThreatModel
from tests.attacks.attack_toys import (
    SETS,
    SINGLES,
    SMALL,
    Company,
    Places,
    Recorder,
    Speechless,
    Toy,
    Unfoolable,
    golden_labels,
    linear,
    small_images,
)
from tests.on_device import DEVICE, random_states, same_states

LINF = ThreatModel("linf", 0.1)
FIRST_THREE = torch.arange(4, device=DEVICE) < 3
ALONE = tuple(name for name in names() if name != "collateral")
"""All attacks except `collateral`, the one on clean members."""
LEAVE_OUT = (
    *(name for name in names() if name.startswith("adaptive-") and name != "adaptive-transfer"),
    "rays",
)
"""The attacks whose queries leave out fooled members of a batch-independent dynamic defense."""


def attack(
    name: str, defense: Any, x: Tensor, y: Tensor, threat: ThreatModel = LINF, **settings: Any
) -> AttackResult:
    """Run an attack with a small budget."""
    seed = settings.pop("seed", 0)
    progress = settings.pop("progress", None)
    return make(name, **{**SMALL[name], **settings})(
        defense, x, y, threat, seed=seed, progress=progress
    )


def answers(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        predictions: Tensor = model(x).argmax(dim=1)
    return predictions


def test_every_attack_has_a_small_budget_for_these_tests() -> None:
    assert set(SMALL) == set(names())


def _snapshot(defense: nn.Module) -> dict[str, bytes]:
    kept = {**dict(defense.named_parameters()), **dict(defense.named_buffers())}
    return {key: value.detach().cpu().numpy().tobytes() for key, value in kept.items()}


SMOOTHED = replace(
    DENT,
    steps=2,  # two, so that `fewer-steps` can take one
    smoothing=SmoothingConfig(sigma=0.5),
)
BY_THE_BATCH = replace(SMOOTHED, statistics="test")


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("kind", ["static", "batch", "dent", "dent-nominal"])
def test_attack_changes_no_model_input_or_random_state_and_prints_nothing(
    name: str, kind: str, tiny_cnn: nn.Module, images: Tensor, capfd: Any
) -> None:
    model: nn.Module = tiny_cnn
    defense = {
        "static": model,
        "batch": Company(model),
        "dent": Dent(model, SMOOTHED),
        "dent-nominal": Dent(model, BY_THE_BATCH),
    }[kind]
    x, y = images[:3, :, 8:20, 8:20].clone(), golden_labels()[:3]
    y[:2] = answers(model, x)[:2]
    target: Any = defense
    if name == "collateral" and kind != "static":  # it needs clean members
        target = Among(target, images[:4, :, 8:20, 8:20], golden_labels()[:4], FIRST_THREE)
    x.requires_grad_()
    before = _snapshot(defense)
    flags = [module.training for module in defense.modules()]
    hooks = [len(module._forward_hooks) for module in defense.modules()]
    wants = [parameter.requires_grad for parameter in defense.parameters()]
    kept_x, kept_y = x.detach().clone(), y.clone()
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    states = (random.getstate(), str(np.random.get_state()), random_states())  # noqa: NPY002
    protocols: list[dict[str, Any]] = [{}]
    if name in SINGLES + SETS:
        protocols.append({"protocol": "published"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for protocol in protocols:
            found = attack(name, target, x, y, **protocol)
            if kind.startswith("dent"):  # otherwise the attack was skipped
                assert not any(note.startswith(NOT_AVAILABLE) for note in found.notes)
    after = (random.getstate(), str(np.random.get_state()), random_states())  # noqa: NPY002
    assert after[:2] == states[:2]
    assert same_states(after[2], states[2])
    assert torch.is_grad_enabled()
    assert _snapshot(defense) == before
    assert all(parameter.grad is None for parameter in defense.parameters())
    assert [module.training for module in defense.modules()] == flags
    assert [len(module._forward_hooks) for module in defense.modules()] == hooks
    assert [parameter.requires_grad for parameter in defense.parameters()] == wants
    assert x.grad is None
    assert torch.equal(x.detach(), kept_x)
    assert torch.equal(y, kept_y)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ALONE)
def test_equal_seeds_give_bit_identical_results(name: str) -> None:
    model, x = linear(), small_images()
    y = answers(model, x)
    threat = ThreatModel("linf", 0.02)
    first = attack(name, model, x, y, threat, seed=3)
    torch.manual_seed(99)
    again = attack(name, model, x, y, threat, seed=3)
    assert torch.equal(first.adversarial, again.adversarial)
    assert torch.equal(first.fooled, again.fooled)
    assert (first.queries, first.backwards) == (again.queries, again.backwards)
    # The first run of FAB starts at the image, not at random. RayS is deterministic.
    if not name.startswith("fab") and name != "rays":
        others = [attack(name, model, x, y, LINF, seed=seed) for seed in (3, 4)]
        assert not torch.equal(others[0].adversarial, others[1].adversarial)


@pytest.mark.parametrize("name", names())
def test_attack_gives_the_same_result_inside_inference_mode(name: str) -> None:
    model, x = linear(), small_images()
    y = answers(model, x)
    with torch.inference_mode():
        inside = attack(name, model, x.clone(), y.clone())
    assert torch.equal(inside.adversarial, attack(name, model, x, y).adversarial)


@given(
    name=st.sampled_from(names()),
    norm=st.sampled_from(NORMS),
    size=st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(5, 8), st.integers(5, 8)),
    classes=st.integers(2, 5),
    eps=st.floats(0.001, 1.0),
    batch_dependent=st.booleans(),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_results_lie_inside_the_threat_model(
    name: str,
    norm: Norm,
    size: tuple[int, int, int, int],
    classes: int,
    eps: float,
    batch_dependent: bool,
    seed: int,
) -> None:
    draws = torch.Generator().manual_seed(seed)
    # Many pixels at the bounds, as natural images have.
    x = (1.4 * torch.rand(size, generator=draws) - 0.2).clamp(0, 1).to(DEVICE)
    y = torch.randint(classes, size[:1], generator=draws).to(DEVICE)
    model = linear(classes, size[1] * size[2] * size[3], seed)
    defense = Company(model) if batch_dependent else model
    threat = ThreatModel(norm, eps)
    result = attack(name, defense, x, y, threat, seed=seed)
    assert result.adversarial.shape == x.shape
    assert result.adversarial.dtype == torch.float32
    assert not threat.check(result.adversarial, x).any()
    # Both predict the same whole batch, so the claims are the predictions on submission.
    assert torch.equal(result.fooled, answers(defense, result.adversarial) != y)
    assert result.fooled[answers(model, x) != y].all() or batch_dependent
    planned = make(name, **SMALL[name]).queries(classes, norm)
    assert result.queries <= planned.forwards
    assert result.backwards <= planned.backwards


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("threat", [ThreatModel("linf", "8/255"), ThreatModel("l2", "128/255")])
def test_attacks_on_dent_stay_inside_the_threat_model(
    name: str, threat: ThreatModel, tiny_cnn: nn.Module, images: Tensor
) -> None:
    # Many pixels at the bounds, and a defense in which every member affects every other.
    x = (1.4 * images[:4, :, 8:18, 8:18] - 0.2).clamp(0, 1)
    dent: Any = Dent(tiny_cnn, BY_THE_BATCH)
    y = answers(dent, x)
    if name == "collateral":
        dent, x, y = Among(dent, x, y, FIRST_THREE), x[:3], y[:3]
    found = attack(name, dent, x, y, threat)
    assert not any(note.startswith(NOT_AVAILABLE) for note in found.notes)
    # Computed here, not by the threat model, whose projection the attacks use.
    adversarial, natural = found.adversarial.double(), x.double()
    assert float(adversarial.min()) >= 0
    assert float(adversarial.max()) <= 1
    apart = (adversarial - natural).flatten(1)
    far = apart.abs().amax(1) if threat.norm == "linf" else apart.norm(dim=1)
    assert float(far.max()) <= threat.eps + 1e-5
    if name not in ("fab", "fab-t", "rays"):  # they search for the nearest adversarial image
        assert float(far.max()) > threat.eps / 4


@pytest.mark.parametrize("name", ALONE)
@pytest.mark.parametrize("batch_dependent", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_queries_keep_members_in_order_and_leave_out_only_independent_ones(
    name: str, batch_dependent: bool, norm: Norm
) -> None:
    model, x = linear(), small_images()
    parts = not batch_dependent and name in LEAVE_OUT
    recorder = Recorder(model, x, batch_dependent=batch_dependent, parts=parts)
    recorder.strict = name != "rays"  # its search queries images outside the threat model
    y = answers(model, x)
    y[1] = (y[1] + 1) % 4  # naturally wrong, so AutoAttack drops it before it begins
    threat = ThreatModel(norm, {"linf": 0.04, "l2": 0.3, "l1": 2.0}[norm])
    result = attack(name, recorder, x, y, threat)
    if name == "adaptive-bpda":  # also queries the static model
        assert result.queries < len(recorder.sizes)
    else:
        assert result.queries == len(recorder.sizes)
    assert {recorder.sizes[0], recorder.sizes[-1]} == {len(x)}
    assert (min(recorder.sizes) < len(x)) == parts
    assert 0 < result.fooled.sum() < 5  # some but not all members are fooled
    assert result.fooled.sum() > 1 or name in ("square", "fab", "pgd-imagenet", "rays")


def test_recorder_fails_on_rows_in_wrong_order_or_number() -> None:
    model, x = linear(), small_images()
    for parts in (False, True):
        recorder = Recorder(model, x, batch_dependent=False, parts=parts)
        for wrong in (x.flip(0), torch.cat([x[:4], x[:1]]), *([] if parts else [x[:4]])):
            with pytest.raises(AssertionError):
                recorder(wrong)
    recorder(x[1:4])


@pytest.mark.parametrize("name", ALONE)
@pytest.mark.parametrize("norm", NORMS)
def test_members_with_equal_images_keep_their_own_places(
    name: str, norm: Norm, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Eight copies of one image, with a separate classifier in every place. The claims hold on
    # submission only if every row is in its own place. So no member may be left out of a query.
    monkeypatch.setattr(MemberSelection, "without", lambda self, fallen: self._target)
    x = small_images(1).repeat(8, 1, 1, 1)
    places = Places(8)
    y = answers(places, x)
    y[2] = (y[2] + 1) % 4
    threat = ThreatModel(norm, {"linf": 0.05, "l2": 0.4, "l1": 3.0}[norm])
    result = attack(name, places, x, y, threat)
    assert torch.equal(answers(places, result.adversarial) != y, result.fooled)
    assert result.fooled[2]


@pytest.mark.parametrize("name", ALONE)
def test_result_of_a_batch_dependent_defense_is_one_batch_with_true_claims(name: str) -> None:
    # The predictions of the members depend on each other. A batch with members from different
    # queries would have other predictions than claimed.
    model, x = linear(), small_images(8)
    company = Company(model)
    y = answers(company, x)
    result = attack(name, company, x, y, ThreatModel("linf", 0.1))
    assert torch.equal(answers(company, result.adversarial) != y, result.fooled)
    assert result.fooled.any()


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        *((name, {}) for name in names()),
        *((name, {"protocol": "published"}) for name in SINGLES + SETS),
    ],
)
def test_nan_logits_count_as_fooled(name: str, extra: dict[str, Any]) -> None:
    model, x = linear(), small_images()
    y = answers(model, x)
    y[0] = 0  # an argmax over NaN may return this class
    mute = Speechless(model, (0, 3), len(x))
    result = attack(name, mute, x, y, ThreatModel("linf", 1e-4), **extra)
    assert result.fooled[[0, 3]].all()
    assert not result.fooled[[1, 2, 4]].any()
    assert result.non_finite >= 2
    assert result.adversarial.isfinite().all()
    assert attack(name, Toy(model), x, y, **extra).non_finite == 0


class _Excluding(Toy):
    """Excludes the class with the lowest logit, another one in every row."""

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        logits: Tensor = self.model(x)
        lowest = logits.amin(dim=1, keepdim=True)
        return logits.masked_fill(logits == lowest, -torch.inf)

    def static(self, x: Tensor) -> Tensor:
        return self.predict(x, None)


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        *((name, {}) for name in ALONE),
        *((name, {"protocol": "published"}) for name in SINGLES + SETS),
    ],
)
def test_rows_that_exclude_classes_are_predictions(name: str, extra: dict[str, Any]) -> None:
    defense, x = _Excluding(linear(classes=6)), small_images()
    assert defense(x).isneginf().sum(dim=1).tolist() == [1] * 5
    y = answers(defense, x)
    for eps, fooled in ((1e-5, False), (0.3, True)):
        result = attack(name, defense, x, y, ThreatModel("linf", eps), **extra)
        assert result.non_finite == 0
        assert not any(note.startswith(NOT_AVAILABLE) for note in result.notes)
        assert bool(result.fooled.any()) == fooled
        assert torch.equal(answers(defense, result.adversarial) != y, result.fooled)


@pytest.mark.parametrize("name", ALONE)
@pytest.mark.parametrize("norm", NORMS)
def test_planned_passes_are_those_of_a_batch_that_cannot_be_fooled(name: str, norm: Norm) -> None:
    x, y = small_images(), torch.arange(5, device=DEVICE)
    seen: list[tuple[int, int]] = []
    result = attack(
        name,
        Unfoolable(y, 5, batch_dependent=True),
        x,
        y,
        ThreatModel(norm, 0.05),
        progress=lambda done, total: seen.append((done, total)),
    )
    planned = make(name, **SMALL[name]).queries(5, norm)
    # `gmsa-min` skips models without the least loss. `surrogates` may use fewer than planned.
    if name not in ("gmsa-min", "surrogates"):
        assert (result.queries, result.backwards) == planned
    assert result.queries <= planned.forwards
    assert result.backwards <= planned.backwards
    assert not result.fooled.any()
    # The logits are constant, so every gradient of every member is zero, and counts as such.
    assert sum(result.zero_by_member) == 5 * result.backwards
    done = result.queries + result.backwards
    assert done <= sum(planned)
    assert [done for done, _ in seen[:-1]] == list(range(1, done + 1))
    assert {total for _, total in seen} == {sum(planned)}
    assert seen[-1] == (sum(planned), sum(planned))


@pytest.mark.parametrize("name", ALONE)
def test_progress_ends_at_its_total_if_all_members_are_fooled_early(name: str) -> None:
    model, x = linear(), small_images()
    seen: list[tuple[int, int]] = []
    wrong = (answers(model, x) + 1) % 4
    result = attack(name, model, x, wrong, progress=lambda *now: seen.append(now))
    assert result.fooled.all()
    assert seen[-1][0] == seen[-1][1] > result.queries + result.backwards
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@pytest.mark.parametrize("name", names())
def test_at_eps_zero_only_naturally_wrong_members_are_fooled(name: str) -> None:
    model, x = linear(), small_images()
    y = answers(model, x)
    y[2] = (y[2] + 1) % 4
    result = attack(name, model, x, y, ThreatModel("l2", 0))
    assert torch.equal(result.adversarial, x)
    assert result.fooled.tolist() == [False, False, True, False, False]
    assert result.queries == 1


@pytest.mark.parametrize("name", ALONE)
def test_missing_gradient_is_reported_by_every_attack_that_needs_it(name: str) -> None:
    class Detached(Toy):
        def predict(self, x: Tensor, adaptation: Any) -> Tensor:
            logits: Tensor = self.model(x)
            return logits.detach()

    model, x = linear(), small_images()
    y = answers(model, x)
    if name in ("square", "rays"):
        assert attack(name, Detached(model), x, y).backwards == 0
    elif name in ("adaptive-transfer", "adaptive-bpda", "zero-update", "surrogates"):
        # These follow the gradient of other models.
        assert attack(name, Detached(model), x, y).fooled.any()
    elif name in ADAPTIVE:
        (note,) = attack(name, Detached(model), x, y).notes
        assert note.startswith(NOT_AVAILABLE)
        assert "without a gradient" in note
    else:
        with pytest.raises(ValueError, match=r"without a gradient.*'square'"):
            attack(name, Detached(model), x, y)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("name", "extra"),
    [
        *((name, {}) for name in ALONE),
        *((name, {"protocol": "published"}) for name in SINGLES + SETS),
    ],
)
def test_memory_format_of_the_images_does_not_change_the_result(
    name: str, extra: dict[str, Any], norm: Norm
) -> None:
    model, x = linear(), small_images(3)
    y = answers(model, x)
    threat = ThreatModel(norm, {"linf": 0.02, "l2": 0.2, "l1": 2.0}[norm])
    usual = attack(name, model, x, y, threat, **extra)
    last = x.to(memory_format=torch.channels_last)
    assert not last.is_contiguous()
    assert torch.equal(attack(name, model, last, y, threat, **extra).adversarial, usual.adversarial)
