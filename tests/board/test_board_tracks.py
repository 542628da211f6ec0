"""Test the tracks: their identity, their fixed samples and the samples drawn by a nonce."""

import pytest

from dent import models
from dent.board.tracks import HEADLINE, VARIANTS, Track, track, tracks
from dent.errors import ConfigError, UnknownNameError
from dent.evaluation.suite_attacks import VERSION

IDENTITIES = {
    "cifar10-linf-8/255-v1": "6e64d0dadda48bf2c95c",
    "cifar10-l2-0.5-v1": "5cd7dbc5b2b514763812",
    "cifar10-linf-8/255-carmon2019-v1": "e91167e183d9d3d8a09e",
    "cifar10-l2-0.5-carmon2019-v1": "b43577699085e7c94405",
    "cifar10-linf-8/255-wong2020-v1": "0c0403245b9b432e8a66",
    "cifar10-l2-0.5-wong2020-v1": "e97354459c5d9176e698",
    "imagenet-linf-4/255-v1": "b9a6e13cc6dfc448b0b8",
}
"""Golden values. Never change a track that has rows: add a new version of it."""
DRAWN = {"one": (523, 628, 630, 638)}
CIFAR10 = [name for name in tracks() if name.startswith("cifar10")]


def test_identity_of_every_track_matches_the_golden_value() -> None:
    assert {name: each.identity[:20] for name, each in tracks().items()} == IDENTITIES


@pytest.mark.parametrize("name", tracks())
def test_base_model_has_fixed_weights_for_the_images_of_its_track(name: str) -> None:
    """A name such as `torchvision/resnet50` follows the default weights of another package."""
    chosen = track(name)
    described = models.info(chosen.model)
    assert described.dataset == chosen.dataset
    if chosen.model.startswith("torchvision/"):
        assert described.source == f"torchvision, {chosen.model.partition('.')[2]}"
        assert described.digest is not None


@pytest.mark.parametrize("name", tracks())
def test_sample_ids_are_sorted_distinct_and_include_the_fixed_half(name: str) -> None:
    chosen = track(name)
    fixed, all_ids = chosen.fixed_ids, chosen.ids("1f")
    assert list(all_ids) == sorted(set(all_ids))
    assert len(fixed) == 512
    assert len(all_ids) == 1024
    assert set(fixed) < set(all_ids)


@pytest.mark.parametrize("name", CIFAR10)
def test_cifar10_tracks_fix_the_first_ids_and_never_draw_model_selection_ids(name: str) -> None:
    chosen = track(name)
    assert chosen.fixed_ids == tuple(range(512))
    assert all(512 <= id_ < 9488 for id_ in chosen.ids("a nonce")[512:])


def test_nonce_changes_only_the_drawn_half_and_is_deterministic() -> None:
    chosen = track("cifar10-linf-8/255-v1")
    one, again, other = (chosen.ids(nonce) for nonce in ("one", "one", "other"))
    assert one == again
    assert one[:512] == other[:512] == chosen.ids()
    assert 0 < len(set(one[512:]) & set(other[512:])) < 100  # 29 by chance
    assert one[512:516] == DRAWN["one"]
    elsewhere = track("cifar10-l2-0.5-v1").ids("one")
    assert elsewhere[512:] != one[512:]


def test_imagenet_fixed_half_covers_more_than_300_classes() -> None:
    classes = {id_ // 50 for id_ in track("imagenet-linf-4/255-v1").fixed_ids}
    assert len(classes) > 300


@pytest.mark.parametrize("nonce", ["", "  ", "x" * 201])
def test_empty_and_overlong_nonces_are_refused(nonce: str) -> None:
    with pytest.raises(ConfigError, match="a nonce is a text of 1 to 200 characters"):
        track("cifar10-linf-8/255-v1").ids(nonce)


def test_each_variant_changes_its_own_settings() -> None:
    chosen = track("cifar10-linf-8/255-v1")
    settings = {name: chosen.settings(name, "1f") for name in VARIANTS}
    assert {(each.batch_size, each.seed, each.ids) for each in settings.values()} == {
        (128, 0, chosen.ids("1f"))
    }
    laid = {name: (each.order, each.mix, each.randomness) for name, each in settings.items()}
    assert laid == {
        "headline": ("dataset", None, "private"),
        "by-class": ("by-class", None, "private"),
        "mix-0.25": ("dataset", 0.25, "private"),
        "public": ("dataset", None, "public"),
        "views": ("dataset", None, "private"),
    }
    assert chosen.settings(HEADLINE, None, "end").until == "end"
    with pytest.raises(UnknownNameError, match=r"no variant 'mix' of .*, only headline, by-class"):
        chosen.settings("mix")


def test_unknown_track_is_refused_with_a_suggestion() -> None:
    with pytest.raises(UnknownNameError, match=r"no track 'cifar10-linf'. Did you mean 'cifar10-l"):
        track("cifar10-linf")


def test_newest_version_of_every_track_uses_the_newest_suite() -> None:
    newest: dict[str, tuple[int, int]] = {}
    for each in tracks().values():
        name, _, version = each.name.rpartition("-v")
        newest[name] = max(newest.get(name, (0, 0)), (int(version), each.suite))
    assert {suite for _, suite in newest.values()} == {VERSION}


def test_changing_a_field_of_a_track_changes_its_identity() -> None:
    chosen = track("cifar10-linf-8/255-v1")
    others = {
        "fixed": "1-512",
        "pool": "512-9999",
        "suite": 2,
        "eps": "4/255",
        "seed": 1,
        "weights": None,
        "batch_size": 64,
    }
    identities = {
        Track(**{**chosen.model_dump(), key: value}).identity for key, value in others.items()
    }
    assert len(identities | {chosen.identity}) == len(others) + 1
