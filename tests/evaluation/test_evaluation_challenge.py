"""Challenges: images from outside are checked, submitted to a fresh copy, and scored."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dent import Dent, DentConfig
from dent.data.dataset import ArrayDataset
from dent.errors import ConfigError, InputError
from dent.evaluation import (
    EvaluationResult,
    Progress,
    RecordError,
    Settings,
    SpecMismatchError,
    Subject,
    challenge,
    estimate_challenge,
    evaluate,
    load_run,
    verify,
)
from dent.evaluation.challenges import challenger
from dent.evaluation.merging import ConflictError, merge
from dent.evaluation.records.journal import CHALLENGES
from dent.evaluation.records.plan import seed_of
from dent.evaluation.records.record_file import dump
from dent.evaluation.records.schema import ChallengeRecord, UnitRecord
from dent.evaluation.results import summary
from dent.evaluation.results.result import Difference, Ground
from dent.evaluation.results.verdict import Differences, conclude
from dent.evaluation.verification.findings import Finding
from dent.evaluation.verification.resubmit import Resubmission
from dent.storage.canonical import canonical, digest
from tests.evaluation.subjects import SMALL, Push, Wrapper, make_model, make_subject

RADIUS = 8 / 255


def weak() -> Subject:
    """Return a model, a defense that answers like it, and an attack that hardly changes images."""
    model = make_model()
    return make_subject({"plain": Wrapper(model)}, [Push(0.02)], model=model)


def batchwise() -> Subject:
    model = make_model()
    defense = Dent(model, DentConfig(steps=1, lr=0.05, statistics="test"))
    return make_subject({"dent": defense}, [Push(0.02)], model=model)


def natural(subject: Subject, count: int) -> tuple[Tensor, Tensor]:
    return subject.dataset.batch(list(range(count)))


def strong(subject: Subject, count: int = 20, share: float = 1.0) -> Tensor:
    """Return images after one step along the gradient's sign, of `share` times eps."""
    x, y = natural(subject, count)
    leaf = x.clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(subject.model(leaf), y)
    (gradient,) = torch.autograd.grad(loss, leaf)
    return subject.threat.project(x + share * RADIUS * gradient.sign(), x)


def to_file(folder: Path, images: Tensor, ids: list[int] | None = None) -> Path:
    path = folder / "images.safetensors"
    entries = {"adversarial": images.contiguous()}
    if ids is not None:
        entries["ids"] = torch.tensor(ids, dtype=torch.int64)
    save_file(entries, path)
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("challenge") / "run"
    evaluate(weak(), SMALL, out=path)
    return path


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def result_of(folder: Path) -> EvaluationResult:
    return EvaluationResult.model_validate_json((folder / "result.json").read_text())


def test_challenge_images_lower_the_worst_case_and_are_recorded(folder: Path) -> None:
    subject, before = weak(), content(folder)
    images = strong(subject)
    path = to_file(folder.parent, images)
    found = challenge(
        folder, subject, path, by="Ada", url="https://example.org/ada", note="one step"
    )
    x, y = natural(subject, 20)
    recorded = load_run(folder)
    own = recorded.images("plain", "push")
    with torch.no_grad():
        rights = [subject.model(each).argmax(dim=1) == y for each in (x, own, images)]
    old, new = (rights[0] & rights[1]), (rights[0] & rights[1] & rights[2])
    assert int(old.sum()) > int(new.sum()), "the test needs images that break something"
    defense = found.result.defenses["plain"]
    assert defense.worst.served.correct == int(new.sum())
    assert defense.difference is not None
    assert defense.difference.value == pytest.approx(float((new.int() - old.int()).sum()) / 20)
    (entry,) = defense.challenges
    assert (entry.by, entry.url, entry.note) == ("Ada", "https://example.org/ada", "one step")
    assert (entry.correct, entry.total) == (int(rights[2].sum()), 20)
    assert entry.lowered == int(old.sum()) - int(new.sum())
    ids = np.arange(100, 120, dtype="<i8")
    content_of_images = ids.tobytes() + images.numpy().astype("<f4").tobytes()
    assert entry.digest == hashlib.sha256(content_of_images).hexdigest()
    assert defense.broken_by == (entry,)
    assert defense.worst.by[entry.key] == entry.lowered
    assert defense.attacks[-1].by == "Ada"
    assert defense.attacks[-1].served.correct == entry.correct
    assert found.result.defenses["static"].challenges == ()
    # The other files of the run are unchanged, and the new result is derived from the records.
    after = content(folder)
    changed = {name for name in after if before.get(name) != after[name]}
    assert changed - {"result.json", "lock"} == {
        CHALLENGES,
        *(
            f"adversarial/challenge-{entry.digest[:12]}-{index:06d}.safetensors"
            for index in range(3)
        ),
    }
    assert recorded.result == found.result == result_of(folder)
    checked = verify(folder, weak())
    assert checked.status == "verified", checked.problems
    stories = recorded.sample(100)
    assert [story.record.kind for story in stories if story.record.defense == "plain"][-1] == (
        "challenge"
    )


def test_a_challenge_submits_whole_batches_and_scores_per_batch(tmp_path: Path) -> None:
    subject = batchwise()
    before = evaluate(subject, SMALL, out=tmp_path / "run").defenses["dent"]
    images = strong(subject)
    found = challenge(tmp_path / "run", subject, to_file(tmp_path, images), by="Ada")
    _, y = natural(subject, 20)
    left = []
    for unit in load_run(tmp_path / "run").units():
        if unit.defense == "dent" and unit.batch is not None:
            labels = y[8 * unit.batch : 8 * unit.batch + 8].tolist()
            right = sum(a == b for a, b in zip(unit.served, labels, strict=True))
            left.append((unit.batch, unit.kind, right))
    by_batch = [min(right for index, _, right in left if index == batch) for batch in range(3)]
    defense = found.result.defenses["dent"]
    assert (defense.worst.unit, defense.worst.served.correct) == ("batch", sum(by_batch))
    for start in (0, 8, 16):
        direct = subject.defenses["dent"]
        logits = direct(images[start : start + 8])  # type: ignore[operator]
        (unit,) = (
            each
            for each in load_run(tmp_path / "run").units()
            if each.kind == "challenge" and each.batch == start // 8
        )
        assert list(unit.served) == logits.argmax(dim=1).tolist()
    assert defense.challenges[0].lowered == before.worst.served.correct - sum(by_batch) > 0
    assert verify(tmp_path / "run", batchwise()).status == "verified"


def far(images: Tensor) -> Tensor:
    moved = images.clone()
    moved[13] = (weak().dataset.batch([13])[0][0] + 0.1).clamp(0, 1)
    return moved


def dark(images: Tensor) -> Tensor:
    x = weak().dataset.batch(list(range(20)))[0]
    moved = images.clone()
    moved[4] = x[4] - RADIUS
    return moved


def infinite(images: Tensor) -> Tensor:
    moved = images.clone()
    moved[19, 0, 0, 0] = float("nan")
    return moved


def rounded(images: Tensor) -> Tensor:
    x = weak().dataset.batch(list(range(20)))[0]
    moved = images.clone()
    moved[3] = x[3]
    moved[3, 0, 0, 0] += (RADIUS + 3e-6) * (1 if float(x[3, 0, 0, 0]) < 0.5 else -1)
    return moved


OUTSIDE: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "too far": (far, r"1 image lies outside .*sample 113: its linf distance is 0\.1, 0\.0686 more"),
    "below 0": (dark, r"sample 104: its values are from -0\.0\d+ to .*, expected 0 to 1"),
    "not a number": (infinite, "sample 119: a value is not finite"),
    "rounded": (rounded, r"project again, x_adv = threat\.project.*sample 103: .* more than eps"),
    "0..255 as floats": (lambda x: x * 255, r"go up to 2\d\d.*: divide pixels of 0..255 by 255$"),
    "too few": (lambda x: x[:-1], "expected 20 images, one for each attacked sample .* got 19"),
    "another shape": (lambda x: x[:, :, :-1], r"expected images \(N, 3, 6, 6\), got \(20, 3, 5, 6"),
    "one image": (lambda x: x[0], r"expected images \(N, 3, 6, 6\), got \(3, 6, 6\)"),
    "pixels": (lambda x: (x * 255).byte(), "expected floats in .*divide pixels of 0..255 by 255"),
}


@pytest.mark.parametrize("case", sorted(OUTSIDE))
def test_invalid_challenge_images_are_refused_and_nothing_is_written(
    case: str, folder: Path
) -> None:
    change, says = OUTSIDE[case]
    before = content(folder)
    path = to_file(folder.parent, change(strong(weak())))
    with pytest.raises(InputError, match=f"(?s){says}"):
        challenge(folder, weak(), path, by="Ada")
    assert content(folder) == before


IDS: dict[str, tuple[list[int], str]] = {
    "part of a batch": (
        [*range(100, 107), 116, 117, 118, 119],
        "batch 0 lacks .* 1 sample of 8: 107",
    ),
    "twice": ([*range(100, 107), 106], "two images have the id of one sample: 106"),
    "of nobody": (
        [*range(100, 107), 120],
        "attacks no sample with the id 120; its ids are from 100",
    ),
    "too few": ([*range(100, 107)], "one id for each of 8 images, got 7"),
}


@pytest.mark.parametrize("case", sorted(IDS))
def test_invalid_challenge_ids_are_refused(case: str, folder: Path) -> None:
    ids, says = IDS[case]
    count = 8 if case == "too few" else len(ids)
    images = strong(weak())[[min(each - 100, 19) for each in [*ids, 101][:count]]]
    with pytest.raises(InputError, match=f"(?s){says}"):
        challenge(folder, weak(), to_file(folder.parent, images, ids), by="Ada")
    assert load_run(folder).challenges == ()


def test_a_challenge_may_cover_some_batches_with_ids_in_any_order(folder: Path) -> None:
    images = strong(weak())
    order = [*range(16, 20), *range(7, -1, -1)]
    path = to_file(folder.parent, images[order], [100 + row for row in order])
    part = challenge(folder, weak(), path, by="Ada")
    whole = challenge(folder, weak(), to_file(folder.parent, images), by="Grace")
    ada, grace = part.challenge.units, whole.challenge.units
    assert [unit.batch for unit in ada] == [0, 2]
    assert [unit.served for unit in ada] == [grace[0].served, grace[2].served]
    first, second = whole.result.defenses["plain"].challenges
    assert (first.by, first.total, second.by, second.total) == ("Ada", 12, "Grace", 20)
    # The second challenge lowers the worst case that the first one left.
    direct = evaluate(weak(), SMALL).defenses["plain"].worst.served.correct
    assert whole.result.defenses["plain"].worst.served.correct == (
        direct - first.lowered - second.lowered
    )


def test_an_array_without_ids_is_read_in_ascending_order_of_the_ids(tmp_path: Path) -> None:
    subject = weak()
    shuffled = Settings(n=20, batch_size=8, order="shuffled")
    evaluate(subject, shuffled, out=tmp_path / "run")
    images = strong(subject)
    np.save(tmp_path / "images.npy", images.double().numpy())
    units = challenge(tmp_path / "run", subject, tmp_path / "images.npy", by="Ada").challenge.units
    recorded = load_run(tmp_path / "run")
    for unit, batch in zip(units, recorded.plan.batches, strict=True):
        assert torch.equal(recorded.adversarial(unit), images[list(batch.positions)])


@pytest.mark.parametrize("order", ["plan.json", "the dataset"])
def test_an_array_in_plan_or_dataset_order_is_refused_with_that_explanation(
    order: str, tmp_path: Path
) -> None:
    subject = weak()
    if order == "the dataset":
        assert isinstance(subject.dataset, ArrayDataset)
        ids = tuple(reversed(subject.dataset.sample_ids))
        subject = replace(subject, dataset=replace(subject.dataset, sample_ids=ids))
    evaluate(subject, Settings(n=20, batch_size=8, order="shuffled"), out=tmp_path / "run")
    images = strong(subject)
    plan = load_run(tmp_path / "run").plan
    positions = [position for batch in plan.batches for position in batch.positions]
    if order == "the dataset":
        positions = sorted(positions)
    order_ids = [subject.dataset.sample_ids[position] for position in positions]
    np.save(tmp_path / "images.npy", images[positions].numpy())
    with pytest.raises(InputError, match=f"(?s)In the order of {order} all .*argsort") as refused:
        challenge(tmp_path / "run", subject, tmp_path / "images.npy", by="Ada")
    assert "sample 1" not in str(refused.value)
    np.save(tmp_path / "images.npy", images[positions].numpy()[np.argsort(order_ids)])
    found = challenge(tmp_path / "run", subject, tmp_path / "images.npy", by="Ada")
    path = to_file(tmp_path, images[positions], order_ids)
    assert not challenge(tmp_path / "run", subject, path, by="Ada").new
    assert found.summaries["plain"].total == 20


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("images.npy", b"no array", "is not a .npy file"),
        ("images.safetensors", b"nothing", "no .safetensors file"),
        ("images.png", b"", r"named .safetensors or .npy, got .png"),
        ("images.npz", b"", r"got .npz.*numpy.save\(\"broken.npy\", x.cpu\(\).numpy\(\)\)"),
    ],
)
def test_unreadable_unsupported_and_missing_image_files_are_refused(
    name: str, text: bytes, says: str, folder: Path
) -> None:
    (folder.parent / name).write_bytes(text)
    with pytest.raises(InputError, match=says):
        challenge(folder, weak(), folder.parent / name, by="Ada")
    with pytest.raises(RecordError, match="is missing"):
        challenge(folder, weak(), folder.parent / "none.npy", by="Ada")


def test_no_images_and_floats_wider_than_float64_are_refused(folder: Path) -> None:
    path = to_file(folder.parent, torch.zeros(0, 3, 6, 6), [])
    with pytest.raises(InputError, match="at least one batch, got no image"):
        challenge(folder, weak(), path, by="Ada")
    if np.dtype(np.longdouble).itemsize > 8:
        wide = strong(weak()).numpy().astype(np.longdouble)
        np.save(folder.parent / "wide.npy", wide)
        with pytest.raises(InputError, match="expected an array of float32 or float64, got"):
            challenge(folder, weak(), folder.parent / "wide.npy", by="Ada")


def test_pickled_arrays_are_refused(folder: Path) -> None:
    np.save(folder.parent / "bad.npy", np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="allow_pickle"):
        challenge(folder, weak(), folder.parent / "bad.npy", by="Ada")


def test_the_same_images_are_recorded_once(folder: Path) -> None:
    path = to_file(folder.parent, strong(weak()))
    first = challenge(folder, weak(), path, by="Ada")
    before = content(folder)
    second = challenge(folder, weak(), path, by="somebody else")
    assert (first.new, second.new) == (True, False)
    assert second.challenge.by == "Ada"
    assert content(folder) == before


def test_the_same_images_in_another_format_are_recorded_once(folder: Path) -> None:
    images = strong(weak())
    first = challenge(folder, weak(), to_file(folder.parent, images), by="Ada")
    np.save(folder.parent / "images.npy", images.double().numpy())
    order = list(range(19, -1, -1))
    with_ids = to_file(folder.parent, images[order], [100 + row for row in order])
    for path in (folder.parent / "images.npy", with_ids):
        again = challenge(folder, weak(), path, by="somebody else")
        assert (again.new, again.challenge.digest) == (False, first.challenge.digest)


def test_images_recorded_with_an_older_file_digest_are_not_recorded_again(folder: Path) -> None:
    path = to_file(folder.parent, strong(weak()))
    older = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(challenger, "digest_of", lambda *_: older)
        challenge(folder, weak(), path, by="Ada")
    before = content(folder)
    again = challenge(folder, weak(), path, by="somebody else")
    assert (again.new, again.challenge.by, again.challenge.digest) == (False, "Ada", older)
    assert content(folder) == before
    checked = verify(folder, weak())
    (check,) = (check for check in checked.checks if check.name == "challenges")
    assert (checked.status, check.state) == ("incomplete", "not-run")
    assert "an older version recorded the digest of their file" in check.problems[0]


def renamed(folder: Path, digest_: str) -> None:
    """Give the only challenge of a run another digest, and all that depends on it."""

    def forge(record: dict[str, Any]) -> None:
        old, record["digest"] = record["digest"][:12], digest_
        for unit in record["units"]:
            unit["attack"] = digest_[:12]
            unit["seed"] = seed_of(0, "unit", unit["batch"], digest_[:12])
            before = unit["tensor"]["file"]
            unit["tensor"]["file"] = before.replace(old, digest_[:12])
            os.rename(folder / before, folder / unit["tensor"]["file"])

    relabel(folder, forge)
    (folder / "result.json").write_bytes(dump(load_run(folder).result))


def test_forged_digest_of_a_challenge_is_found_and_hides_no_other_images(folder: Path) -> None:
    other = Path(shutil.copytree(folder, folder.parent / "other"))
    path = to_file(folder.parent, strong(weak()))
    real = challenge(other, weak(), path, by="Ada").challenge
    of_file = hashlib.sha256(path.read_bytes()).hexdigest()
    weaker = folder.parent / "weaker.npy"
    np.save(weaker, natural(weak(), 20)[0].numpy())
    challenge(folder, weak(), weaker, by="the author")
    renamed(folder, real.digest)
    before = content(folder)
    with pytest.raises(RecordError, match=r"by the author of .* but has others"):
        challenge(folder, weak(), path, by="Ada")
    assert content(folder) == before
    checked = verify(folder, weak())
    assert (checked.status, checked.problems) == ("incomplete", ())
    (check,) = (check for check in checked.checks if check.name == "challenges")
    assert (
        f"the digest {real.short} of the challenge by the author is not that" in check.problems[0]
    )
    renamed(folder, of_file)
    assert challenge(folder, weak(), path, by="Ada").summaries["plain"].by == "Ada"


def test_a_dry_run_returns_the_result_and_writes_nothing(folder: Path) -> None:
    path, before = to_file(folder.parent, strong(weak())), content(folder)
    dry = challenge(folder, weak(), path, by="Ada", dry_run=True)
    assert content(folder) == before
    found = challenge(folder, weak(), path, by="Ada")
    assert (dry.new, found.new) == (True, True)
    lowered = dry.summaries["plain"].lowered
    assert lowered == found.summaries["plain"].lowered > 0
    assert dry.result.defenses["plain"].worst == found.result.defenses["plain"].worst
    assert not challenge(folder, weak(), path, by="Ada", dry_run=True).new


def test_a_challenge_by_an_attack_reports_progress_and_can_be_estimated(folder: Path) -> None:
    states: list[Progress] = []
    challenge(
        folder, weak(), Push(), by="Ada", defense="plain", progress=states.append, dry_run=True
    )
    units = [state.unit.key if state.unit else "" for state in states]
    assert [key.split("/")[:2] for key in dict.fromkeys(units)] == [
        *(["attack", str(batch)] for batch in range(3)),
        *(["challenge", str(batch)] for batch in range(3)),
        [""],
    ]
    shares = [state.share for state in states]
    assert (shares, shares[0], shares[-1]) == (sorted(shares), 0.0, 1.0)
    assert (states[-1].done, states[-1].total, states[-1].remaining) == (6, 6, 0.0)
    assert 0 < shares[1] < 1
    assert states[1].remaining is not None
    cost = estimate_challenge(folder, weak(), Push(), defense="plain")
    passes = Push().queries(4)
    assert cost.gradients == 3 * passes.backwards > 0
    assert cost.seconds >= cost.least > 0
    with pytest.raises(ConfigError, match="no defense 'mine'"):
        estimate_challenge(folder, weak(), Push(), defense="mine")


def test_a_challenge_to_the_static_model_is_submitted_to_every_defense(folder: Path) -> None:
    path = to_file(folder.parent, strong(weak()))
    found = challenge(folder, weak(), path, by="Ada", defense="static")
    assert {name: each.made_for for name, each in found.summaries.items()} == {
        "static": "static",
        "plain": "static",
    }
    assert found.summaries["static"].lowered == found.summaries["plain"].lowered > 0
    assert not challenge(folder, weak(), path, by="Ada", defense="plain").new
    assert verify(folder, weak()).status == "verified"


def test_a_challenge_to_the_static_model_skips_defenses_that_have_the_images(folder: Path) -> None:
    path = to_file(folder.parent, strong(weak()))
    challenge(folder, weak(), path, by="Ada", defense="plain")
    found = challenge(folder, weak(), path, by="Ada", defense="static")
    assert [unit.defense for unit in found.challenge.units] == ["static"] * 3
    assert load_run(folder).result.defenses["plain"].challenges[0].made_for == "plain"


def without_units(folder: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Remove submissions from the first challenge of a run, and write a matching result."""

    def forge(record: dict[str, Any]) -> None:
        record["units"] = [unit for unit in record["units"] if keep(unit)]

    relabel(folder, forge)
    if (folder / "result.json").exists():
        (folder / "result.json").unlink()


@pytest.mark.parametrize(
    ("keep", "says"),
    [
        (lambda unit: unit["defense"] == "static", "batch 0 was not submitted to plain"),
        (
            lambda unit: (unit["defense"], unit["batch"]) != ("plain", 1),
            "batch 1 was not submitted to plain",
        ),
        (lambda unit: unit["defense"] == "plain", "batch 0 was not submitted to static"),
    ],
)
def test_a_challenge_to_the_static_model_may_not_leave_out_a_defense_or_a_batch(
    folder: Path, keep: Callable[[dict[str, Any]], bool], says: str
) -> None:
    challenge(folder, weak(), to_file(folder.parent, strong(weak())), by="Ada", defense="static")
    without_units(folder, keep)
    said = f"images made for static have to be submitted to static, plain: {says}"
    with pytest.raises(RecordError, match=said):
        load_run(folder)
    assert verify(folder, weak()).status == "failed"


def test_a_challenge_to_a_defense_may_not_be_submitted_to_another_one(folder: Path) -> None:
    challenge(folder, weak(), to_file(folder.parent, strong(weak())), by="Ada", defense="static")
    relabel(folder, lambda record: record.update(defense="plain"))
    with pytest.raises(RecordError, match="images made for plain were submitted to static"):
        load_run(folder)


def test_defenses_of_a_challenge_to_the_static_model_get_the_same_images(folder: Path) -> None:
    challenge(folder, weak(), to_file(folder.parent, strong(weak())), by="Ada", defense="static")

    def forge(record: dict[str, Any]) -> None:
        unit = next(unit for unit in record["units"] if unit["defense"] == "plain")
        unit["tensor"]["sha256"] = "0" * 64

    relabel(folder, forge)
    with pytest.raises(RecordError, match="the defenses got different images of batch 0"):
        load_run(folder)


def test_only_an_earlier_challenge_with_the_same_images_spares_a_defense(folder: Path) -> None:
    path = to_file(folder.parent, strong(weak()))
    challenge(folder, weak(), path, by="Ada", defense="plain")
    challenge(folder, weak(), path, by="Ada", defense="static")
    first, second = (folder / CHALLENGES).read_text().splitlines()
    assert len(load_run(folder).challenges) == 2
    for lines in ([second], [second, first]):
        (folder / CHALLENGES).write_text("\n".join(lines) + "\n")
        with pytest.raises(RecordError, match="line 1: images made for static have to be"):
            load_run(folder)


def paired(low: float, high: float) -> Difference:
    count = {"correct": 50, "total": 100, "share": 0.5, "interval": (0.4, 0.6)}
    return Difference.model_validate(
        {
            "value": (low + high) / 2,
            "interval": (low, high),
            "method": "tango",
            "assumes": "",
            "total": 100,
            "only_defended": 9,
            "only_static": 1,
            "static": count,
            "static_unit": "sample",
        }
    )


CERTIFIED: Ground = "exact gradient certified"


def test_a_gain_must_hold_without_the_challenges_to_the_static_model() -> None:
    higher, level = paired(0.02, 0.1), paired(-0.02, 0.06)
    ruled = [
        conclude(
            "small",
            Differences(higher, level, without_static_challenges=unchallenged),
            (),
            (),
            ground=CERTIFIED,
        ).ruling
        for unchallenged in (None, higher, level)
    ]
    assert ruled == ["robust gain", "robust gain", "no gain"]


def test_a_text_that_is_not_valid_unicode_is_refused_before_the_attack(tmp_path: Path) -> None:
    evaluate(make_subject(), SMALL, out=tmp_path)

    def fail(state: Progress) -> None:
        raise AssertionError("the attack ran")

    for by, note in (("Ada\udcff", None), ("Ada", "\udcff")):
        with pytest.raises(ConfigError, match=r"is not valid Unicode: .*\\udcff"):
            challenge(tmp_path, make_subject(), Push(), by=by, note=note, progress=fail)


def test_a_gain_states_the_difference_without_challenges_to_the_static_model() -> None:
    def sentence(unchallenged: Difference | None) -> str:
        both = Differences(
            paired(0.5, 0.7), paired(-0.02, 0.06), without_static_challenges=unchallenged
        )
        return conclude("small", both, (), (), ground=CERTIFIED).sentence

    smaller = sentence(paired(0.02, 0.1))
    assert "; without challenges to the static model: +6.0 [+2.0, +10.0] points" in smaller
    for equal in (None, paired(0.5, 0.7)):
        assert "without challenges" not in sentence(equal)


def test_challenges_to_the_defense_alone_do_not_make_it_harmful() -> None:
    level, lower = paired(-0.02, 0.06), paired(-0.1, -0.02)
    ruled = [
        conclude(
            "small",
            Differences(lower, level, without_own_challenges=unchallenged),
            (),
            (),
            ground=CERTIFIED,
        )
        for unchallenged in (None, lower, level)
    ]
    assert [each.ruling for each in ruled] == ["harmful", "harmful", "no gain"]
    assert "only challenges to the defense put the difference below 0" in ruled[-1].sentence
    both = Differences(lower, lower, without_own_challenges=level)
    worse = conclude("small", both, (), (), ground=CERTIFIED)
    assert (worse.ruling, "clean accuracy is lower" in worse.sentence) == ("harmful", True)


def test_the_verdict_gets_the_difference_without_challenges_to_the_defense_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Difference] = {}

    def judged(
        results: Any, *_: Any, without_own_challenges: dict[str, Difference], **__: Any
    ) -> Any:
        given.clear()
        given.update(without_own_challenges)
        return results

    monkeypatch.setattr(summary, "with_verdicts", judged)
    before = load_run(folder).result.defenses["plain"].difference
    assert given == {}
    path = to_file(folder.parent, strong(weak()))
    challenge(folder, weak(), path, by="Ada", defense="plain")
    found = load_run(folder).result.defenses["plain"].difference
    assert given == {"plain": before} != {"plain": found}
    # Now both have the images.
    challenge(folder, weak(), path, by="Ada", defense="static")
    assert load_run(folder).result.defenses["plain"].difference is not None
    assert given == {}


def test_a_challenge_by_an_attack_records_the_images_that_the_attack_makes(folder: Path) -> None:
    subject = weak()
    found = challenge(folder, subject, Push(name="theirs:push"), by="Ada", defense="plain")
    assert found.challenge.attack == "theirs:push"
    recorded = load_run(folder)
    made = torch.cat([recorded.adversarial(unit) for unit in found.challenge.units])
    x, y = natural(subject, 20)
    expected = [
        Push()(
            subject.model, x[at : at + 8], y[at : at + 8], threat=subject.threat, seed=0
        ).adversarial
        for at in (0, 8, 16)
    ]
    assert torch.equal(made, torch.cat(expected))
    assert not challenge(folder, subject, Push(name="again"), by="B", defense="plain").new
    assert verify(folder, weak()).status == "verified"


def test_a_challenge_replaces_only_attacked_members_of_a_mixed_batch(tmp_path: Path) -> None:
    subject = weak()
    evaluate(subject, Settings(n=4, batch_size=8, mix=0.25), out=tmp_path / "run")
    found = challenge(tmp_path / "run", subject, to_file(tmp_path, strong(subject, 4)), by="Ada")
    assert [len(unit.served) for unit in found.challenge.units] == [8, 8]
    assert found.summaries["plain"].total == 4
    assert found.result.defenses["plain"].attacks[-1].bystanders.total == 12
    assert verify(tmp_path / "run", weak()).status == "verified"


def test_challenge_images_are_kept_in_a_run_that_drops_tensors(tmp_path: Path) -> None:
    evaluate(weak(), Settings(n=8, batch_size=8, tensors="drop"), out=tmp_path / "run")
    challenge(tmp_path / "run", weak(), to_file(tmp_path, strong(weak(), 8)), by="Ada")
    assert len(list((tmp_path / "run" / "adversarial").iterdir())) == 1
    assert verify(tmp_path / "run", weak()).problems == ()


def test_a_resumed_run_keeps_its_challenges(tmp_path: Path) -> None:
    def stop(state: object) -> None:
        if getattr(state, "done", 0) == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(weak(), SMALL, out=tmp_path / "run", progress=stop)
    path = to_file(tmp_path, strong(weak()))
    begun = challenge(tmp_path / "run", weak(), path, by="Ada")
    assert begun.result.status == "partial"
    evaluate(weak(), SMALL, out=tmp_path / "run")
    evaluate(weak(), SMALL, out=tmp_path / "other")
    other = challenge(tmp_path / "other", weak(), path, by="Ada").result
    finished = result_of(tmp_path / "run")
    assert finished.status == "complete"
    assert finished.defenses["plain"].worst == other.defenses["plain"].worst
    assert finished.identity == other.identity
    assert verify(tmp_path / "run", weak()).status == "verified"


def test_another_model_an_unknown_defense_or_no_name_is_refused(folder: Path) -> None:
    model = make_model(seed=1)
    other = make_subject({"plain": Wrapper(model)}, [Push(0.02)], model=model)
    with pytest.raises(SpecMismatchError, match=r"model\.weights"):
        challenge(folder, other, to_file(folder.parent, strong(weak())), by="Ada")
    with pytest.raises(ConfigError, match=r"no defense 'dent\+': expected one of static, plain"):
        challenge(folder, weak(), folder.parent / "x.npy", by="Ada", defense="dent+")
    with pytest.raises(ConfigError, match="needs the name"):
        challenge(folder, weak(), folder.parent / "x.npy", by=" ")
    assert not (folder / CHALLENGES).exists()


def test_merge_keeps_every_challenge_once_and_refuses_conflicts(
    folder: Path, tmp_path: Path
) -> None:
    twin = Path(shutil.copytree(folder, tmp_path / "twin"))
    ada, grace = strong(weak()), strong(weak(), share=0.5)
    for path in (folder, twin):
        challenge(path, weak(), to_file(tmp_path, ada), by="Ada")
    challenge(twin, weak(), to_file(tmp_path, grace), by="Grace")
    merge([folder, twin], tmp_path / "merged")
    merged = load_run(tmp_path / "merged")
    assert [entry.by for entry in merged.challenges] == ["Ada", "Grace"]
    assert merged.result == result_of(tmp_path / "merged")
    assert merged.result.defenses["plain"].worst == load_run(twin).result.defenses["plain"].worst
    assert verify(tmp_path / "merged", weak()).status == "verified"
    relabel(twin, lambda record: flip(record, 0))
    with pytest.raises(ConflictError, match="challenge/0/plain/"):
        merge([folder, twin], tmp_path / "again")


def relabel(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Edit the first challenge and update its checksum to match."""
    lines = (folder / CHALLENGES).read_text().splitlines()
    record = json.loads(lines[0])["record"]
    change(record)
    lines[0] = canonical({"record": record, "sha256": digest(record)})
    (folder / CHALLENGES).write_text("\n".join(lines) + "\n")


def flip(record: dict[str, Any], member: int) -> None:
    served = record["units"][0]["served"]
    served[member] = (served[member] + 1) % 4


FORGED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no name": (lambda r: r.update(by="  "), "does not say who made it"),
    "of nothing": (lambda r: r.update(units=[]), "units"),
    "another defense": (lambda r: r.update(defense="dent"), "no defense 'dent'"),
    "another kind": (lambda r: r["units"][0].update(kind="natural"), "a unit of this challenge"),
    "another digest": (lambda r: r.update(digest="0" * 64), "a unit of this challenge"),
    "no such batch": (lambda r: r["units"][0].update(batch=9), "no such batch"),
    "all batches": (lambda r: r["units"][0].update(batch=None), "no such batch"),
    "twice": (lambda r: r["units"].append(r["units"][0]), "submitted twice"),
    "no images": (lambda r: r["units"][0].update(tensor=None), "no tensor"),
    "too few served": (lambda r: r["units"][0]["served"].pop(), "7 predictions for 8 members"),
    "images elsewhere": (
        lambda r: r["units"][0]["tensor"].update(file="adversarial/000000-00-00.safetensors"),
        "expected adversarial/challenge-",
    ),
}


@pytest.fixture(scope="module")
def challenged(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    parent = tmp_path_factory.mktemp("challenged")
    path = Path(shutil.copytree(finished, parent / "run"))
    challenge(path, weak(), to_file(parent, strong(weak())), by="Ada")
    return path


@pytest.mark.parametrize("case", sorted(FORGED))
def test_contradictory_challenge_records_are_refused(
    case: str, challenged: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(challenged, tmp_path / "run"))
    change, says = FORGED[case]
    relabel(folder, change)
    with pytest.raises(RecordError, match=says):
        load_run(folder)


def test_verify_finds_forged_predictions_and_images_of_challenges(
    challenged: Path, tmp_path: Path
) -> None:
    def problems(change: Callable[[Path], None], name: str) -> str:
        folder = Path(shutil.copytree(challenged, tmp_path / name))
        change(folder)
        return "\n".join(verify(folder, weak()).problems)

    def forge(folder: Path) -> None:
        relabel(folder, lambda record: flip(record, 3))

    def edit(folder: Path) -> None:
        text = (folder / CHALLENGES).read_text()
        (folder / CHALLENGES).write_text(text.replace("Ada", "Bob"))

    def move(folder: Path) -> None:
        path = next((folder / "adversarial").glob("challenge-*"))
        images = load_file(path)["adversarial"]
        images[0] = (images[0] + 0.2).clamp(0, 1)
        save_file({"adversarial": images}, path)
        fresh = hashlib.sha256(path.read_bytes()).hexdigest()
        number = int(path.stem[-6:])

        def tell(record: dict[str, Any]) -> None:
            record["units"][number]["tensor"]["sha256"] = fresh

        relabel(folder, tell)

    forged = problems(forge, "forged")
    assert "member 3 is served" in forged
    assert "challenges: the challenge by Ada fails: served" in forged
    assert "does not match its checksum" in problems(edit, "edited")
    moved = problems(move, "moved")
    assert "threat model: challenge/" in moved
    assert "challenges: the challenge by Ada fails: threat model" in moved


def test_verify_names_the_failed_challenge_in_any_wording(
    challenged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = Resubmission.check_challenge

    def reworded(self: Resubmission, challenge: ChallengeRecord) -> Iterator[Finding]:
        for finding in check(self, challenge):
            yield replace(finding, problem="It is so.") if finding.check == "served" else finding

    monkeypatch.setattr(Resubmission, "check_challenge", reworded)
    problems = verify(challenged, weak()).problems
    assert "challenges: the challenge by Ada fails: served" in problems


def test_verify_reports_how_many_challenges_it_checked(finished: Path, challenged: Path) -> None:
    def counted(folder: Path, subject: Subject | None) -> list[tuple[str, int]]:
        checks = verify(folder, subject).checks
        return [(each.state, each.looked_at) for each in checks if each.name == "challenges"]

    assert counted(challenged, weak()) == [("passed", 1)]
    assert counted(challenged, None) == [("not-run", 0)]
    assert counted(finished, weak()) == []


class Died(BaseException):
    """Simulates a kill: as a BaseException, it passes all handlers of errors."""


def die_at(monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """Make the `call`-th disk operation raise `Died`, a write after half of its bytes."""
    left = [call]
    write, fsync, replace = os.write, os.fsync, os.replace

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*arguments: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                if real is write:
                    write(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
                raise Died
            return real(*arguments)

        return operation

    for name, real in (("write", write), ("fsync", fsync), ("replace", replace)):
        monkeypatch.setattr(os, name, counted(real))


@pytest.mark.slow
def test_a_run_stays_valid_wherever_a_challenge_is_killed(tmp_path: Path) -> None:
    subject = weak()
    evaluate(subject, Settings(n=4, batch_size=4), out=tmp_path / "run")
    before = load_run(tmp_path / "run").result
    path = to_file(tmp_path, strong(subject, 4))
    for call in range(1, 100):
        folder = Path(shutil.copytree(tmp_path / "run", tmp_path / f"run-{call}"))
        with pytest.MonkeyPatch.context() as patch:
            die_at(patch, call)
            try:
                challenge(folder, subject, path, by="Ada")
            except Died:
                pass
            else:
                break
        assert verify(folder).problems == ()
        recorded = load_run(folder)
        assert len(recorded.challenges) in (0, 1)
        assert recorded.challenges or recorded.result == before
        again = challenge(folder, subject, path, by="Ada")
        assert again.new is not bool(recorded.challenges)
        assert result_of(folder) == again.result == load_run(folder).result
    assert call > 8
    assert verify(folder, weak()).status == "verified"


def test_golden_runs_of_older_versions_have_no_challenges() -> None:
    golden = Path(__file__).parent / "golden"
    for path in golden.glob("v*"):
        recorded = load_run(path)
        assert recorded.challenges == ()
        assert all(isinstance(unit, UnitRecord) for unit in recorded.units())
