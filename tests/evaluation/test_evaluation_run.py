"""Whole evaluations, compared with the same computation by hand."""

import copy
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from dent import Dent, DentConfig
from dent.attacks import Defense, make
from dent.defenses import AntiAdversary, TentOnline
from dent.errors import ConfigError, DataError, InputError
from dent.evaluation import (
    EvaluationResult,
    Progress,
    Settings,
    Subject,
    describe,
    estimate,
    evaluate,
    load_run,
)
from dent.evaluation.records.plan import make_plan
from dent.evaluation.records.schema import Trace, UnitRecord
from dent.evaluation.records.shard import Shard
from dent.evaluation.records.store import Memory
from dent.evaluation.submission.submission import merge_traces, submit
from dent.storage.canonical import without_timing
from dent.storage.errors import SpecMismatchError
from tests.evaluation.subjects import (
    CLASSES,
    SMALL,
    Boast,
    Broken,
    Guess,
    Push,
    Remembering,
    Wrapper,
    batch_of,
    make_dataset,
    make_model,
    make_subject,
)
from tests.on_device import DEVICE, random_states, same_states


def comparable(result: EvaluationResult) -> object:
    plain = without_timing(result.to_json())
    plain.pop("sessions")
    return plain


def test_evaluation_counts_equal_those_of_a_manual_loop() -> None:
    subject = make_subject()
    result = evaluate(subject, SMALL)
    for name, defense in {"static": subject.model, **subject.defenses}.items():
        natural, robust = 0, {"nudge": 0, "push": 0}
        for start in (0, 8, 16):
            x, y = batch_of(subject.dataset, range(start, min(start + 8, 20)))
            natural += int((defense(x).argmax(1) == y).sum())
            for attack in subject.attacks:
                found = attack(defense, x, y, subject.threat, seed=0)
                robust[attack.name] += int((defense(found.adversarial).argmax(1) == y).sum())
        got = result.defenses[name]
        assert (got.natural.correct, got.natural.total) == (natural, 20)
        for attack_name, count in robust.items():
            summary = got.attack(attack_name)
            assert (summary.served.correct, summary.served.total) == (count, 20)
            assert (summary.queries, summary.backwards) == (6, 3)
    assert 0 < result.defenses["static"].attack("push").served.correct < 20


def test_transfer_submits_the_adversarial_images_of_the_static_model() -> None:
    subject = make_subject()
    dent = subject.defenses["dent"]
    count = 0
    for start in (0, 8, 16):
        x, y = batch_of(subject.dataset, range(start, min(start + 8, 20)))
        found = Push()(subject.model, x, y, subject.threat, seed=0)
        count += int((dent(found.adversarial).argmax(1) == y).sum())
    result = evaluate(subject, SMALL).defenses["dent"]
    assert result.attack("push", "transfer").served.correct == count
    without = evaluate(subject, Settings(n=20, batch_size=8, transfer=False)).defenses["dent"]
    assert {summary.kind for summary in without.attacks} == {"attack", "assembled"}


def test_identity_defense_has_a_difference_of_exactly_zero() -> None:
    model = make_model()
    attacks = [Push(0.5, name="nudge"), Guess(), make("apgd-ce", iterations=3)]
    subject = make_subject({"identity": Wrapper(model)}, attacks, model=model)
    result = evaluate(subject, SMALL)
    gain = result.defenses["identity"].difference
    assert gain is not None
    assert (gain.value, gain.only_defended, gain.only_static) == (0.0, 0, 0)
    assert gain.interval is not None
    assert gain.interval[0] < 0 < gain.interval[1]
    static, same = (result.defenses[name] for name in ("static", "identity"))
    assert static.worst.served == same.worst.served
    assert static.trace.entropy == same.trace.entropy
    for attack in attacks:
        assert static.attack(attack.name).trace == same.attack(attack.name).trace


def test_run_in_a_folder_gives_the_same_result_as_in_memory(tmp_path: Path) -> None:
    kept = evaluate(make_subject(), SMALL, out=tmp_path / "run")
    assert comparable(kept) == comparable(evaluate(make_subject(), SMALL))
    recorded = load_run(tmp_path / "run")
    assert recorded.result == kept
    assert EvaluationResult.model_validate_json((tmp_path / "run/result.json").read_text()) == kept


class Held:
    """A defense that is no module, so that its weights are not in the identity of a run."""

    batch_dependent = False

    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def adapt(self, x: Tensor) -> None:
        del x

    def predict(self, x: Tensor, adaptation: None) -> Tensor:
        del adaptation
        logits: Tensor = self.net(x)
        return logits


class Shifted(Wrapper):
    """Its mean is in no state dict."""

    def __init__(self, model: nn.Module, mean: float) -> None:
        super().__init__(model)
        self.register_buffer("mean", torch.tensor(mean, device=DEVICE), persistent=False)

    def predict(self, x: Tensor, adaptation: None) -> Tensor:
        return super().predict(x - self.mean, adaptation)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (Held(make_model()), Held(make_model(seed=3))),
        (Shifted(make_model(), 0.0), Shifted(make_model(), 0.9)),
        (Held(make_model()), Held(nn.Sequential(make_model(), nn.Softmax(dim=1)))),
    ],
    ids=["weights", "buffer", "only the loss"],
)
def test_a_run_is_not_resumed_with_a_defense_that_answers_otherwise(
    tmp_path: Path, before: Defense, after: Defense
) -> None:
    def stop(state: Progress) -> None:
        if state.done >= 6:
            raise KeyboardInterrupt

    two = Settings(n=8, batch_size=4)
    with pytest.raises(KeyboardInterrupt):
        evaluate(make_subject({"it": before}), two, out=tmp_path, progress=stop)
    with pytest.raises(SpecMismatchError, match=r"it: .* in batch 0: its model, its weights or"):
        evaluate(make_subject({"it": after}), two, out=tmp_path)
    assert evaluate(make_subject({"it": before}), two, out=tmp_path).status == "complete"


def test_a_shard_without_units_is_partial(tmp_path: Path) -> None:
    result = evaluate(make_subject(), SMALL, out=tmp_path, shard=Shard(50, 60))
    assert (result.status, load_run(tmp_path).run.status) == ("partial", "partial")


def test_the_time_of_a_run_includes_units_of_a_killed_process(tmp_path: Path) -> None:
    evaluate(make_subject(), SMALL, out=tmp_path)
    recorded = load_run(tmp_path)
    (session,) = recorded.run.sessions
    killed = session.model_copy(update={"units": 0, "timing": {}})
    run = recorded.run.model_copy(update={"sessions": (killed,)})
    timing = replace(recorded, run=run).result.timing
    units = recorded.records.values()
    assert timing["total"] == sum(record.timing.total for record in units) > 0
    assert timing["attack"] == sum(record.timing.attack for record in units) > 0
    assert recorded.result.timing["total"] == session.timing["total"]


def test_result_counts_predictions_on_submission_and_not_claims() -> None:
    subject = make_subject({}, [Boast()])
    static = evaluate(subject, SMALL).defenses["static"]
    summary = static.attack("boast")
    assert summary.served == static.natural
    assert summary.claimed is not None
    assert summary.claimed.correct == 0
    assert summary.claimed_but_served == static.natural.correct
    flag = next(d for d in static.diagnostics if d.name == "served differs from claimed")
    assert flag.raised


def test_non_finite_logits_count_as_wrong_and_are_recorded_as_null(tmp_path: Path) -> None:
    model = make_model()
    subject = make_subject({"broken": Broken(model)}, model=model)
    result = evaluate(subject, SMALL, out=tmp_path / "run").defenses["broken"]
    x, y = batch_of(subject.dataset, range(20))
    dark = x[:, 0, 0, 0] < 0.25
    assert result.non_finite == int(dark.sum()) > 0
    assert result.natural.correct == int(((model(x).argmax(1) == y) & ~dark).sum())
    record = load_run(tmp_path / "run").records["natural/0/broken/None"]
    assert isinstance(record, UnitRecord)
    assert [at is None for at in record.served] == dark[:8].tolist()
    assert record.trace.rows == int((~dark[:8]).sum())
    assert "non-finite" in [diagnostic.name for diagnostic in result.raised]
    assert "NaN" not in (tmp_path / "run" / "journal.jsonl").read_text()


def test_trace_contains_the_mean_entropy_of_each_step_and_the_status() -> None:
    config = DentConfig(steps=3, lr=0.01)
    model = make_model()
    subject = make_subject({"dent": Dent(model, config)}, [Push()], model=model)
    result = evaluate(subject, Settings(n=16, batch_size=8)).defenses["dent"]
    dent = Dent(model, config)
    means = []
    for start in (0, 8):
        x, _ = batch_of(subject.dataset, range(start, start + 8))
        a = dent.adapt(x)
        p = dent.predict(x, a).softmax(1)
        means.append([*a.entropy.mean(1).tolist(), float(-(p * p.log()).sum(1).mean())])
    expected = torch.tensor(means, dtype=torch.float64).mean(0).tolist()
    assert result.trace.entropy == pytest.approx(expected, rel=1e-5)
    assert result.trace.status == {"adapted": 16}
    assert result.attack("push").trace.entropy != result.trace.entropy


class Shared(list[Tensor]):
    """A list that all copies of its owner share."""

    def __deepcopy__(self, memo: object) -> "Shared":
        return self


class Recorder(Wrapper):
    """Records every batch that it predicts."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.seen = Shared()

    def predict(self, x: Tensor, adaptation: object) -> Tensor:
        self.seen.append(x.detach().clone())
        return super().predict(x, adaptation)


def test_clean_members_of_mixed_batches_stay_natural() -> None:
    model = make_model()
    recorder = Recorder(model)
    subject = make_subject({"recorder": recorder}, [Push()], model=model)
    asked = Settings(n=6, batch_size=8, mix=0.25, transfer=False)
    result = evaluate(subject, asked)
    _, data = recorder.seen, subject.dataset
    plan = make_plan(asked, data)
    assert [batch.attacked for batch in plan.batches] == [2, 2, 2]
    whole = [x for x in recorder.seen if len(x) == 8]
    for batch in plan.batches:
        x, _ = batch_of(data, batch.positions)
        among = [seen for seen in whole if torch.equal(seen[2:], x[2:])]
        # the natural batch, the two queries of the attack, and the submission
        assert len(among) >= 4
        moved = [seen for seen in among if not torch.equal(seen[:2], x[:2])]
        assert moved
        assert all(bool((seen[:2] - x[:2]).abs().max() <= 8 / 255 + 1e-6) for seen in moved)
    defended = result.defenses["recorder"]
    assert (defended.natural.total, defended.bystanders.total) == (6, 18)
    assert defended.attack("push").bystanders.total == 18
    labels = [batch.labels[2:] for batch in plan.batches]
    right = sum(
        int(
            (
                model(batch_of(data, b.positions[2:])[0]).argmax(1)
                == torch.tensor(y, device=DEVICE)
            ).sum()
        )
        for b, y in zip(plan.batches, labels, strict=True)
    )
    assert defended.attack("push").bystanders.correct == right


def test_units_of_a_stateful_defense_start_from_the_state_of_the_stream(tmp_path: Path) -> None:
    model = make_model()

    def subject() -> object:
        return make_subject({"stream": Remembering(model)}, [Push(), Guess()], model=model)

    result = evaluate(subject(), SMALL, out=tmp_path / "whole")  # type: ignore[arg-type]
    # Batch b is the (b + 1)-th of the stream, so its logits are rolled by (b + 1) % 2.
    data = make_dataset(40)
    right = 0
    for at, start in enumerate((0, 8, 16)):
        x, y = batch_of(data, range(start, min(start + 8, 20)))
        right += int((model(x).roll((at + 1) % 2, dims=1).argmax(1) == y).sum())
    assert result.defenses["stream"].natural.correct == right

    def stop(state: Progress) -> None:
        if state.done == 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(subject(), SMALL, out=tmp_path / "parts", progress=stop)  # type: ignore[arg-type]
    again = evaluate(subject(), SMALL, out=tmp_path / "parts")  # type: ignore[arg-type]
    assert comparable(again) == comparable(result)


def test_the_published_protocol_attacks_all_samples_in_one_call() -> None:
    model = make_model()
    attacks = [make("apgd-ce", iterations=4, protocol="published", batch_size=8), Push()]
    dent = Dent(model, DentConfig(steps=1, lr=0.01))
    subject = make_subject({"dent": dent}, attacks, model=model)
    result = evaluate(subject, SMALL)
    assert result.status == "complete"
    published = result.defenses["dent"].attack("apgd-ce")
    assert published.served.total == 20
    x, y = batch_of(subject.dataset, range(20))
    found = attacks[0](model, x, y, subject.threat, seed=0)
    static = result.defenses["static"].attack("apgd-ce")
    assert static.claimed is not None
    assert static.claimed.correct == 20 - int(found.fooled.sum())
    with pytest.raises(ConfigError, match="mix needs protocol='frozen'"):
        evaluate(subject, Settings(n=8, batch_size=4, mix=0.5))


def test_mixed_batches_are_refused_for_attacks_that_leave_members_out() -> None:
    subject = make_subject({}, [make("apgd-ce", iterations=2, ask="standing")])
    with pytest.raises(ConfigError, match="mix needs ask='whole'"):
        evaluate(subject, Settings(n=8, batch_size=4, mix=0.5))


def test_published_attack_regroups_survivors_by_the_batch_size_of_the_run() -> None:
    subject = make_subject({}, [make("apgd-ce", iterations=2, protocol="published")])
    result = evaluate(subject, SMALL)
    (attack,) = result.spec.attacks
    assert attack.settings["batch_size"] == SMALL.batch_size
    x, y = batch_of(subject.dataset, range(20))
    alone = make("apgd-ce", iterations=2, protocol="published", batch_size=8)
    found = alone(subject.model, x, y, subject.threat, seed=0)
    assert result.defenses["static"].attack("apgd-ce").queries == found.queries


def test_dropped_tensors_are_deleted_and_do_not_change_the_result(tmp_path: Path) -> None:
    dropped = evaluate(make_subject(), SMALL.model_copy(update={"tensors": "drop"}))
    asked = Settings(**{**SMALL.to_json(), "tensors": "drop"})
    on_disk = evaluate(make_subject(), asked, out=tmp_path / "run")
    assert list((tmp_path / "run" / "adversarial").iterdir()) == []
    assert comparable(on_disk) == comparable(dropped)
    kept = evaluate(make_subject(), SMALL)
    for name in kept.defenses:
        assert kept.defenses[name].worst == dropped.defenses[name].worst


def test_memory_holds_the_tensors_of_only_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    most, real = [0], Memory.put

    def put(self: Memory, record: object, adversarial: Tensor | None = None) -> None:
        real(self, record, adversarial)  # type: ignore[arg-type]
        most[0] = max(most[0], len(self._tensors))

    monkeypatch.setattr(Memory, "put", put)
    evaluate(make_subject(), Settings(n=40, batch_size=4))
    assert most[0] == 4  # two defenses, two attacks


def test_progress_never_decreases_and_ends_with_the_result() -> None:
    seen: list[Progress] = []
    result = evaluate(make_subject(), SMALL, progress=seen.append)
    assert seen[0].done == 0
    assert seen[0].unit is not None
    assert seen[0].unit.kind == "probe"
    assert all(a.share <= b.share + 1e-9 for a, b in pairwise(seen))
    assert any(0 < state.within < 1 for state in seen)
    last = seen[-1]
    assert (last.done, last.unit, last.share, last.remaining) == (last.total, None, 1.0, 0.0)
    for name, defense in result.defenses.items():
        assert last.natural[name] == (defense.natural.correct, 20)
        assert last.robust[name] == (defense.worst.served.correct, 20)


def test_worst_case_without_attacks_is_the_clean_accuracy() -> None:
    result = evaluate(make_subject(attacks=[]), SMALL).defenses["dent"]
    assert result.attacks == ()
    assert result.worst.served == result.natural


def test_run_without_a_static_model_has_no_difference() -> None:
    result = evaluate(make_subject(), Settings(n=8, batch_size=8, static=False))
    assert list(result.defenses) == ["dent"]
    assert result.defenses["dent"].difference is None
    states = {d.name: d.state for d in result.defenses["dent"].diagnostics}
    assert states["transfer beats white-box"] == "not-run"


def test_invalid_subjects_are_refused_before_the_run_starts(tmp_path: Path) -> None:
    cases = [
        (make_subject(attacks=[Push(), Push(0.5)]), "two attacks are called 'push'", ConfigError),
        (make_subject({"dent": 3}), "must be a torch.nn.Module or have adapt", InputError),  # type: ignore[dict-item]
        (make_subject({"x": make_model().train()}), "training mode", InputError),
        (make_subject({" ": make_model()}), "name of a defense", ConfigError),
    ]
    for subject, message, kind in cases:
        with pytest.raises(kind, match=message):
            evaluate(subject, SMALL, out=tmp_path / "run")
        assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="no defense to evaluate"):
        evaluate(make_subject({}), Settings(static=False))


def test_a_defense_around_another_model_is_refused() -> None:
    model, other = make_model(), make_model(seed=3)
    settings = Settings(n=8, batch_size=8)

    def subject(base: nn.Module) -> Subject:
        return replace(make_subject({"mine": Dent(base, DentConfig(steps=1))}), model=model)

    with pytest.raises(InputError, match="'mine' wraps another model than the one under eval"):
        evaluate(subject(other), settings)
    tuned = copy.deepcopy(model)
    defended = make_subject({"mine": Dent(tuned, DentConfig(steps=1))})
    with torch.no_grad():
        next(model.parameters()).mul_(2)
    with pytest.raises(InputError, match=r"Wrap this model, .*: Dent\(model\)"):
        describe(replace(defended, model=model), settings)
    # A module that is a defense itself, perhaps with weights of its own, is run as such a Dent.
    alone = make_subject({"mine": Dent(other, DentConfig(steps=0))})
    describe(replace(alone, model=make_model()), settings)
    # The same weights under other names, as inside of a wrapper, are the same model.
    describe(subject(nn.Sequential(model).eval()), settings)


def test_dataset_that_changes_its_labels_during_the_run_is_refused() -> None:
    data = make_dataset()
    calls = [0]

    class Fickle(type(data)):  # type: ignore[misc]
        def batch(self, indices: object) -> tuple[Tensor, Tensor]:
            calls[0] += 1
            x, y = data.batch(indices)  # type: ignore[arg-type]
            return x, (y + (calls[0] > 2)) % CLASSES

    fickle = object.__new__(Fickle)
    fickle.__dict__.update(data.__dict__)
    with pytest.raises(DataError, match="gives other labels for batch"):
        evaluate(replace(make_subject(), dataset=fickle), SMALL)


class Bare:
    """Not a module and not callable: has only `adapt`, `predict` and `batch_dependent`."""

    def __init__(self, model: nn.Module, batch_dependent: bool) -> None:
        self.model, self.batch_dependent = model, batch_dependent

    def adapt(self, x: Tensor) -> float:
        return float(x.detach().mean()) if self.batch_dependent else 0.5

    def predict(self, x: Tensor, adaptation: float) -> Tensor:
        logits: Tensor = self.model(x)
        return logits * (1 + adaptation)


@pytest.mark.parametrize("batch_dependent", [False, True])
@pytest.mark.parametrize("mix", [None, 0.5])
def test_any_object_with_adapt_and_predict_is_evaluated(
    batch_dependent: bool, mix: float | None
) -> None:
    model = make_model()
    defense = Bare(model, batch_dependent)
    attacks = [Push(), make("apgd-ce", iterations=2), make("square", iterations=4)]
    subject = make_subject({"bare": defense}, attacks, model=model)
    settings = Settings(n=8, batch_size=4, mix=mix, diagnostics="full")
    assert estimate(subject, settings).defenses["bare"].gradient_seconds is not None
    result = evaluate(subject, settings)
    # Scaling the logits changes no prediction, so the defense predicts like the static model.
    for kind in ("attack", "transfer"):
        served = result.defenses["bare"].attack("push", kind).served
        assert served == result.defenses["static"].attack("push").served


def test_defense_that_returns_logits_of_a_wrong_shape_is_refused() -> None:
    class Flat(Wrapper):
        def predict(self, x: Tensor, adaptation: object) -> Tensor:
            return super().predict(x, adaptation)[:, 0]

    with pytest.raises(InputError, match=r"must return logits \(8, classes\) .* got \(8,\)"):
        evaluate(make_subject({"flat": Flat(make_model())}), SMALL)


def test_evaluation_does_not_change_the_global_random_states() -> None:
    before = random_states()
    evaluate(make_subject(attacks=[Guess()]), Settings(n=8, batch_size=8))
    assert same_states(before, random_states())


def test_submit_accepts_a_batch_of_one_image() -> None:
    x, _ = batch_of(make_dataset(), [3])
    served = submit(Dent(make_model(), DentConfig(steps=1)), x, seed=0)
    assert len(served.predictions) == 1


def test_recorded_run_returns_every_prediction_for_a_sample(tmp_path: Path) -> None:
    subject = make_subject()
    evaluate(subject, SMALL, out=tmp_path / "run")
    recorded = load_run(tmp_path / "run")
    answers = recorded.sample(109)
    assert len(answers) == 9
    x, _ = batch_of(subject.dataset, [9])
    for answer in answers:
        assert (answer.batch.index, answer.member) == (1, 1)
        assert answer.predicted == answer.record.served[1]
        if answer.row is not None:
            image = recorded.adversarial(answer.record)[answer.row]
            assert float((image - x[0].cpu()).abs().max()) <= 8 / 255 + 1e-6


class Told(Wrapper):
    """Returns a given adaptation instead of adapting."""

    def __init__(self, model: nn.Module, told: object) -> None:
        super().__init__(model)
        self.told = told

    def adapt(self, x: Tensor) -> object:
        del x
        return self.told


def test_trace_reads_sigma_of_every_shape() -> None:
    x, _ = batch_of(make_dataset(), range(2))

    def trace(**told: object) -> Trace:
        return submit(Told(make_model(), SimpleNamespace(**told)), x, seed=0, attacked=1).trace

    assert trace(sigma=torch.tensor(0.5)).sigma == (0.5,)
    # Batch-wise sigma of two axes has the same shape as one sigma for each of two samples.
    pair = torch.tensor([0.25, 0.75])
    assert trace(sigma=pair).sigma == (0.25, 0.75)
    assert trace(sigma=pair, sample_wise=True).sigma == (0.25,)
    both = torch.tensor([[0.25, 1.0], [0.75, 2.0]])
    assert trace(sigma=both, sample_wise=True).sigma == (0.25, 1.0)
    steps = torch.tensor([1.0, 0.5, 0.25])
    assert trace(sigma_by_step=steps).sigma_by_step == ((1.0,), (0.5,), (0.25,))
    assert trace(sigma=torch.tensor(torch.nan)).sigma is None
    assert trace().sigma is None


def test_merged_traces_are_weighted_by_their_number_of_rows() -> None:
    one = Trace(rows=1, entropy=(1.0, 0.0), sigma=(0.0,), status={"adapted": 1})
    three = Trace(rows=3, entropy=(3.0, 4.0), sigma=(1.0,), status={"adapted": 2, "reverted": 1})
    nothing = Trace(rows=0, entropy=None, sigma=None, status={"input-non-finite": 2})
    merged = merge_traces([one, three, nothing])
    assert merged.entropy == (2.5, 3.0)
    assert merged.sigma == (0.75,)
    assert merged.rows == 4
    assert merged.status == {"adapted": 3, "input-non-finite": 2, "reverted": 1}
    assert merge_traces([nothing]).entropy is None


class _AtLeastTwo(nn.Module):
    """A model that fails on a batch of one image, like BatchNorm on a variance of one value."""

    batches: ClassVar[list[int]] = []

    def __init__(self) -> None:
        super().__init__()
        self.model = make_model()

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(len(x))
        if len(x) == 1:
            raise ZeroDivisionError("a variance of one value")
        logits: Tensor = self.model(x)
        return logits


def test_model_that_fails_on_the_smallest_batch_is_refused_before_the_start(tmp_path: Path) -> None:
    subject = replace(make_subject({}), model=_AtLeastTwo().eval())
    with pytest.raises(InputError, match=r"'static' fails on a batch of 1 image, .*9 samp"):
        evaluate(subject, Settings(n=9, batch_size=4), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert set(_AtLeastTwo.batches) == {1, 4}
    _AtLeastTwo.batches.clear()
    evaluate(subject, Settings(n=8, batch_size=4))
    assert 1 not in _AtLeastTwo.batches


class _Drifting(AntiAdversary):
    """A reference defense that keeps state, without the methods of a stream."""

    queries = 0

    def _start(self, x: Tensor) -> Tensor:
        self.queries += 1
        return super()._start(x)


def test_the_given_defenses_are_never_queried_before_a_run_of_uneven_batches() -> None:
    model = make_model()
    tent, drifting = TentOnline(model), _Drifting(model)
    evaluate(
        make_subject({"tent": tent, "drifting": drifting}, [Push()], model=model),
        Settings(n=4, batch_size=3),
    )
    assert tent.snapshot() is None
    assert drifting.queries == 0


def test_batch_of_one_with_test_statistics_is_refused_before_the_start() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 4), nn.BatchNorm1d(4)).eval().to(DEVICE)
    config = DentConfig(steps=1, lr=1e-3, statistics="test")
    subject = replace(make_subject(), model=model, defenses={"dent": Dent(model, config)})
    with pytest.raises(InputError, match="'dent' fails on a batch of 1 image"):
        evaluate(subject, Settings(n=5, batch_size=4))
