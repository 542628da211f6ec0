"""Adaptive attacks in a whole evaluation, on a defense and its static model."""

from pathlib import Path

import pytest

from dent import Dent, DentConfig
from dent.attacks import make
from dent.attacks.adaptive import NOT_AVAILABLE
from dent.evaluation import Settings, evaluate, verify
from tests.evaluation.subjects import make_model, make_subject

ATTACKS = {
    "adaptive-transfer": {"iterations": 4},
    "adaptive-bpda": {"iterations": 4},
    "adaptive-fewer-steps": {"iterations": 4},
    "adaptive-unrolled": {"iterations": 4},
    "zero-update": {"iterations": 4},
    "gmsa-min": {"iterations": 3, "rounds": 2},
    "collateral": {"iterations": 3},
}


@pytest.mark.parametrize("mix", [None, 0.5])
def test_adaptive_attacks_lower_accuracy_and_their_claims_hold_on_submission(
    tmp_path: Path, mix: float | None
) -> None:
    model = make_model()
    dent = Dent(model, DentConfig(steps=4, lr=0.005))
    attacks = [make(name, **settings) for name, settings in ATTACKS.items()]
    subject = make_subject({"dent": dent}, attacks, model=model, eps="8/255")
    result = evaluate(subject, Settings(n=8, batch_size=8, mix=mix), out=tmp_path / "run")
    for name, defense in result.defenses.items():
        for found in defense.attacks:
            if found.kind != "attack":
                continue
            said = [note for note in found.notes if note.startswith(NOT_AVAILABLE)]
            alone = found.attack == "collateral" and (mix is None or name == "static")
            assert bool(said) == alone
            assert found.claimed == found.served
            if not alone and found.attack not in ("collateral", "zero-update"):
                assert found.served.correct < defense.natural.correct
    if mix:
        notes = result.defenses["dent"].attack("collateral").notes
        assert len(notes) == 2  # one per batch
        assert all("clean members right" in note for note in notes)
    assert verify(tmp_path / "run", subject).status == "verified"
