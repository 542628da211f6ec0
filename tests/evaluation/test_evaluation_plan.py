"""The plan: the samples of each batch, and the order of the units."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dent.data import ArrayDataset, ImageDataset
from dent.errors import ConfigError, DataError, FewClassesWarning, InputError
from dent.evaluation import Settings, describe, evaluate
from dent.evaluation.records.plan import make_plan, seed_of, units
from dent.evaluation.records.spec import Order
from dent.storage.canonical import digest
from tests.evaluation.subjects import SMALL, Push, Wrapper, make_dataset, make_model, make_subject

DATA = make_dataset(60)
ORDERS: tuple[Order, ...] = ("dataset", "shuffled", "by-class")


@given(
    n=st.integers(1, 80),
    batch_size=st.integers(1, 40),
    order=st.sampled_from(ORDERS),
    mix=st.none() | st.floats(0.01, 1.0),
    seed=st.integers(0, 2**40),
)
@settings(max_examples=150, deadline=None)
def test_every_sample_is_attacked_exactly_once_for_any_settings(
    n: int, batch_size: int, order: Order, mix: float | None, seed: int
) -> None:
    asked = Settings(n=n, batch_size=batch_size, order=order, mix=mix, seed=seed)
    plan = make_plan(asked, DATA)
    assert plan == make_plan(asked, DATA)
    attacked = [at for batch in plan.batches for at in batch.positions[: batch.attacked]]
    assert sorted(attacked) == list(range(min(n, 60)))
    share = batch_size if mix is None else max(1, round(mix * batch_size))
    for batch in plan.batches:
        assert len(set(batch.positions)) == batch.size
        assert batch.size - batch.attacked == batch_size - share
        assert batch.ids == tuple(100 + at for at in batch.positions)
        assert batch.labels == tuple(int(DATA.labels[at]) for at in batch.positions)
    assert all(batch.attacked == share for batch in plan.batches[:-1])


def test_order_setting_keeps_shuffles_or_groups_samples_by_class() -> None:
    plans = {order: make_plan(Settings(n=40, batch_size=10, order=order), DATA) for order in ORDERS}
    rows = {o: [at for b in plans[o].batches for at in b.positions] for o in ORDERS}
    assert rows["dataset"] == list(range(40))
    assert rows["shuffled"] != sorted(rows["shuffled"])
    labels = [int(DATA.labels[at]) for at in rows["by-class"]]
    assert labels == sorted(labels)
    other = make_plan(Settings(n=40, batch_size=10, order="shuffled", seed=1), DATA)
    assert other != plans["shuffled"]


def test_plans_and_unit_seeds_are_stable_across_versions() -> None:
    # A newer version must be able to resume a run that an older version started.
    plan = make_plan(Settings(n=30, batch_size=16, order="shuffled", mix=0.25, seed=7), DATA)
    assert digest([list(batch.positions) for batch in plan.batches]).startswith("8719419fe69add75")
    assert seed_of(7, "unit", 3, "pgd") == 8532239185191102262


def test_mix_with_more_clean_members_than_the_dataset_has_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"needs 45 natural images beside 5 .* has 40 images"):
        make_plan(Settings(batch_size=50, mix=0.1), make_dataset(40))


def test_units_are_ordered_by_batch_with_the_static_model_first() -> None:
    subject = make_subject()
    spec, plan = describe(subject, SMALL), make_plan(SMALL, subject.dataset)
    keys = [unit.key for unit in units(spec, plan)]
    assert len(set(keys)) == len(keys)
    assert keys[:2] == ["probe/0/static/None", "probe/0/dent/None"]
    assert keys[2:11] == [
        "natural/0/static/None",
        "attack/0/static/nudge",
        "attack/0/static/push",
        "natural/0/dent/None",
        "attack/0/dent/nudge",
        "attack/0/dent/push",
        "transfer/0/dent/nudge",
        "transfer/0/dent/push",
        "assembled/0/dent/None",
    ]
    assert [key.split("/")[1] for key in keys[2:]] == ["0"] * 9 + ["1"] * 9 + ["2"] * 9


@pytest.mark.parametrize("out", [None, "run"])
def test_names_that_give_two_units_one_key_are_refused(tmp_path: Path, out: str | None) -> None:
    model = make_model()
    defenses = {"a/b": Wrapper(model), "a": Wrapper(model)}
    subject = make_subject(defenses, [Push(name="c"), Push(name="b/c")], model=model)
    with pytest.raises(ConfigError, match=r"2 units would be recorded as 'attack/0/a/b/c'"):
        evaluate(subject, SMALL, out=None if out is None else tmp_path / out)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n": 0}, "n must be greater than or equal to 1, got 0"),
        ({"mix": 1.5}, "mix must be .* got 1.5"),
        ({"order": "random"}, "order must be .*'by-class', got 'random'"),
        ({"n": 8, "ids": (0, 1)}, "settings: n and ids both choose the samples: give one of them$"),
        ({"batchsize": 3}, "there is no setting 'batchsize', only n, batch_size"),
    ],
)
def test_invalid_settings_are_refused_with_the_reason(
    values: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Settings(**values)


@pytest.mark.parametrize("order", ORDERS)
def test_samples_can_be_chosen_by_id(order: Order) -> None:
    chosen = (103, 150, 104, 120)
    plan = make_plan(Settings(ids=chosen, batch_size=3, order=order), DATA)
    attacked = [id_ for batch in plan.batches for id_ in batch.ids[: batch.attacked]]
    assert sorted(attacked) == sorted(chosen)
    assert [batch.size for batch in plan.batches] == [3, 1]
    if order == "dataset":
        assert attacked == sorted(chosen)


def test_ids_change_the_identity_and_are_omitted_from_the_spec_if_unset() -> None:
    subject = make_subject()
    without = describe(subject, Settings(n=3))
    assert "ids" not in without.to_json()["settings"]
    with_ids = describe(subject, Settings(ids=(102, 100, 101)))
    assert with_ids.to_json()["settings"]["ids"] == [100, 101, 102]
    assert with_ids == describe(subject, Settings(ids=(100, 101, 102)))
    assert with_ids.identity != without.identity
    assert with_ids.samples == without.samples == 3


def test_ids_of_the_first_n_samples_give_the_same_plan_as_n() -> None:
    first = Settings(ids=tuple(range(100, 130)), batch_size=8, mix=0.5)
    assert make_plan(first, DATA) == make_plan(Settings(n=30, batch_size=8, mix=0.5), DATA)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"ids": (1, 2, 1)}, "an id is there twice"),
        ({"ids": ()}, "ids: Tuple should have at least 1 item"),
        ({"ids": (-1,)}, "greater than or equal to 0"),
        ({"ids": (1,), "n": 3}, "n and ids both choose the samples"),
    ],
)
def test_invalid_ids_are_refused(values: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Settings(**values)


def test_ids_missing_from_the_dataset_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"2 ids of 3 .* not in 'toy' .*such as 160: .* 60 images"
    ):
        make_plan(Settings(ids=(100, 160, 170)), DATA)


def sorted_by_class() -> ArrayDataset:
    order = sorted(range(60), key=lambda position: DATA.labels[position])
    return DATA.subset(order)


@pytest.mark.parametrize("shuffle", ["dataset", "shuffled"])
def test_a_run_warns_of_classes_that_its_first_images_lack(shuffle: Order) -> None:
    subject = replace(make_subject(), dataset=sorted_by_class())
    with pytest.warns(FewClassesWarning) as caught:
        evaluate(subject, Settings(n=8, batch_size=4, order=shuffle))
    (warning,) = (each for each in caught if each.category is FewClassesWarning)
    assert "the first 8 images of toy have only 1 of its 4 classes" in str(warning.message)
    assert "--ids" in str(warning.message)


@pytest.mark.parametrize(
    ("dataset", "settings"),
    [
        (sorted_by_class(), Settings(batch_size=60)),
        (sorted_by_class(), Settings(ids=(100, 101), batch_size=2)),
        (DATA, Settings(n=2, batch_size=2)),
    ],
)
def test_a_run_does_not_warn_of_classes_that_were_chosen(
    dataset: ArrayDataset, settings: Settings
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", FewClassesWarning)
        evaluate(replace(make_subject(), dataset=dataset), settings)


class _Own(ImageDataset):
    """The toy images, as a class that sets no digest and may add a number to the labels."""

    name, split, classes, sample_ids = "own", "test", DATA.classes, DATA.sample_ids

    def __init__(self, labels: int = 0) -> None:
        self.offset = labels

    def __len__(self) -> int:
        return len(DATA)

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        images, labels = DATA.batch(indices)
        return images, labels + self.offset


def test_a_dataset_without_a_digest_is_refused_with_the_way_to_get_one() -> None:
    subject = replace(make_subject(), dataset=_Own())
    with pytest.raises(InputError, match=r"_Own has no digest: .*dent\.data\.from_factory"):
        evaluate(subject, SMALL)


@pytest.mark.parametrize(("offset", "labels"), [(4, "4 to 7"), (-1, "-1 to 2")])
def test_labels_of_no_class_are_refused(offset: int, labels: str) -> None:
    dataset = _Own(offset)
    dataset.digest = "0" * 64
    with pytest.raises(DataError, match=rf"'own' has labels {labels} in batch 0, expected 0 to 3"):
        evaluate(replace(make_subject(), dataset=dataset), SMALL)
