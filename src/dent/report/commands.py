"""The commands that repeat and verify a run, as far as its records determine them."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dent import attacks, data, models
from dent.defenses import registry
from dent.errors import DentError
from dent.evaluation.attack_specs import attack_spec, named_code
from dent.evaluation.records.spec import STATIC, AttackSpec, DefenseSpec, EvaluationSpec, Settings
from dent.evaluation.results.recorded_run import RecordedRun
from dent.evaluation.subject import threat_of
from dent.evaluation.suite_attacks import VERSION, name_of
from dent.evaluation.suites import named_suite
from dent.names import CATALOGUES
from dent.support import ranges


@dataclass(frozen=True)
class Commands:
    """The commands for a run.

    Attributes:
        again: The command that repeats the evaluation in a new folder.
        verify: The command that checks the records.
        code: The `module:factory` names whose code `verify` runs.
        caveats: The parts that `again` cannot express, because they were made in Python or from
            files that are not in the records. Empty if `again` is complete.
    """

    again: str
    verify: str
    code: tuple[str, ...]
    caveats: tuple[str, ...]


def commands(loaded: RecordedRun) -> Commands:
    """Return the commands that repeat and verify a run."""
    spec = loaded.run.spec
    words: list[str] = ["dent", "evaluate"]
    caveats: list[str] = []
    for piece, caveat in _pieces(spec):
        words += piece
        caveats += caveat
    folder = str(loaded.path)
    code = named_code(spec)
    return Commands(
        again=shlex.join([*words, "--out", f"{folder.rstrip('/')}-again"]),
        verify=shlex.join(["dent", "verify", folder, *(["--allow-code"] if code else [])]),
        code=code,
        caveats=tuple(caveats),
    )


def _pieces(spec: EvaluationSpec) -> Iterator[tuple[list[str], list[str]]]:
    yield _model(spec)
    yield _dataset(spec)
    alone = len(spec.defenses) == 1
    yield from (_defense(defense, alone=alone) for defense in spec.defenses)
    if not spec.has_static:
        yield ["--no-static"], []
    threat = spec.threat
    bounds = [] if threat.bounds == (0.0, 1.0) else [f"the bounds {list(threat.bounds)}"]
    yield ["--norm", threat.norm, "--eps", threat.eps], bounds
    yield _attacks(spec)
    yield _settings(spec.settings, spec.has_static)


def _model(spec: EvaluationSpec) -> tuple[list[str], list[str]]:
    name = spec.model.name
    digest = f"weights with the digest {spec.model.weights}"
    if name in models.names() or ("/" in name and name.partition("/")[0] in CATALOGUES):
        return ["--model", name], []
    return ["--model", name], [f"the model {name!r}: your own factory or --weights; {digest}"]


def _dataset(spec: EvaluationSpec) -> tuple[list[str], list[str]]:
    dataset = spec.dataset
    words = ["--dataset", dataset.name]
    ids = spec.settings.ids
    # With --suite, the default of --n is not the whole dataset.
    n = spec.settings.n or (spec.samples if named_suite(spec) else None)
    if ids is not None:
        words += ["--ids", ranges.written(ids)]
    elif n is not None:
        words += ["--n", str(n)]
    if dataset.name not in data.names() or dataset.split != "test":
        caveat = f"the dataset {dataset.name!r}, split {dataset.split!r}, digest {dataset.digest}"
        return words, [caveat]
    return words, []


def _defense(spec: DefenseSpec, *, alone: bool) -> tuple[list[str], list[str]]:
    settings = spec.config.get("settings")
    named_config = registry.CONFIGS.get(spec.name)
    has_settings = named_config is not None and named_config.to_dict() == settings
    if spec.name == STATIC and not has_settings:  # the command line adds it
        return [], ["that there is no defense but the static model"] if alone else []
    is_named_config = has_settings and spec.config.get("precision", "model") == "model"
    is_named_defense = (
        named_config is None and spec.name in registry.names() and spec.config["name"] == spec.name
    )
    if is_named_config or is_named_defense:
        return ["--defense", spec.name], []
    caveat = f"the defense {spec.name!r}: its JSON file or package.module:factory, see the spec"
    return ["--defense", spec.name], [caveat]


def _attacks(spec: EvaluationSpec) -> tuple[list[str], list[str]]:
    if not spec.attacks:
        return [], ["that there is no attack"]
    suite = named_suite(spec)
    if suite is not None and suite[0] == name_of(VERSION):
        name, budget = suite
        words = ["--suite", name, "--budget", budget]
        return [*words, *(["--to-the-end"] if spec.settings.until == "end" else [])], []
    until = spec.settings.until
    early = [] if until == Settings().until else [f"the setting until={until!r}"]
    words, caveats = _named_attacks(spec)
    if suite is not None:  # the command line runs only the newest version
        caveats = [f"the attacks: dent.evaluation.suite{suite} in Python"]
    return words, [*caveats, *early]


def _named_attacks(spec: EvaluationSpec) -> tuple[list[str], list[str]]:
    words = [word for attack in spec.attacks for word in ("--attack", attack.name)]
    protocols = {attack.protocol for attack in spec.attacks}
    if protocols == {"published"} and not all("protocol=" in a.name for a in spec.attacks):
        words += ["--protocol", "published"]
    changed = [attack for attack in spec.attacks if not _same(attack, None, spec)]
    if not changed:
        return words, []
    all_iterations = {attack.settings.get("iterations") for attack in changed}
    for iterations in all_iterations:
        if isinstance(iterations, int) and all(
            _same(attack, iterations, spec) for attack in spec.attacks
        ):
            return [*words, "--iterations", str(iterations)], []
    unnamed = [
        attack.name
        for attack in changed
        if not _same(attack, attack.settings.get("iterations"), spec)
    ]
    named = ", ".join(map(repr, unnamed)) or "the attacks, with different iterations each"
    return words, [f"the settings of {named}: see the spec"]


def _same(recorded: AttackSpec, iterations: Any, spec: EvaluationSpec) -> bool:
    """Return whether an attack that is made from the recorded name has the recorded settings."""
    try:
        attack = attacks.make_from(recorded.name, iterations=iterations, protocol=recorded.protocol)
        made_spec = attack_spec(attack.sized(spec.settings.batch_size), threat_of(spec.threat))
    except DentError:
        return False
    return (made_spec.attack, made_spec.settings) == (recorded.attack, recorded.settings)


def _settings(settings: Settings, has_static: bool) -> tuple[list[str], list[str]]:
    default = Settings()
    words = ["--batch-size", str(settings.batch_size)]
    for name in ("order", "mix", "seed", "diagnostics", "tensors", "randomness"):
        value = getattr(settings, name)
        if value != getattr(default, name):
            words += [f"--{name}", str(value)]
    if settings.transfer == has_static:
        return words, []
    return words, [f"the setting transfer={settings.transfer}"]
