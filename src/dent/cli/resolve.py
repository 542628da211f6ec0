"""Make datasets, defenses, attacks, threat models and more from what the user typed."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

import torch

from dent import data, names
from dent.attacks import Attack, Defense, from_factory, make_from
from dent.attacks.autoattack.attack import QueryProtocol
from dent.cli import console, preflight
from dent.data import ImageDataset
from dent.defenses import registry
from dent.distributed import Cluster
from dent.errors import ConfigError, DataError, InputError
from dent.evaluation import Reattack, Subject
from dent.evaluation.records.spec import STATIC
from dent.evaluation.records.sweep import Over
from dent.evaluation.sweeps import Value
from dent.support.plural import counted
from dent.threat import ThreatModel, usual_eps


def cluster(
    address: str | None,
    workers: int | None,
    cpus: int | None,
    gpus: float | None,
    device: str | None,
) -> Cluster | None:
    """Return the cluster to compute on, or None without `--ray`.

    Args:
        address: The value of `--ray`: None without the option, "" for the bare option.
        workers: The number of workers.
        cpus: The CPUs of each worker.
        gpus: The GPUs of each worker.
        device: The value of `--device`.

    Raises:
        ConfigError: An option needs `--ray`, or `--device` contradicts the workers' device.
    """
    options = {"--workers": workers, "--cpus-per-worker": cpus, "--gpus-per-worker": gpus}
    if address is None:
        useless = [option for option, value in options.items() if value is not None]
        if useless:
            raise ConfigError(f"{', '.join(useless)}: add --ray, or leave it out.")
        return None
    requested = Cluster(
        address=address or None,
        workers=workers,
        cpus_per_worker=cpus or 1,
        gpus_per_worker=gpus or 0.0,
    )
    if device not in (None, requested.device):
        raise ConfigError(
            f"--device {device} cannot be combined with --ray: workers use the GPUs of "
            "--gpus-per-worker, or the CPU."
        )
    return requested


def dataset(name: str, root: Path | None, split: Literal["test", "train"] = "test") -> ImageDataset:
    """Return a dataset. If it is missing, download it with a progress bar.

    Raises:
        ConfigError: a folder is given for a factory.
        DataError: the dataset is missing or not valid, or has no such split.
    """
    preflight.check_data_folder(name, root)
    if ":" in name:
        # The test split is what the factory returns without arguments, for every command.
        return data.from_factory(name, None if split == "test" else split)
    with data.progress_bar(console.ERR) as report:
        return data.load(name, split, root=root, progress=report)


def both_splits(name: str, root: Path | None) -> tuple[ImageDataset, ImageDataset]:
    """Return the train split and the test split of a dataset; see `dataset`.

    Raises:
        ConfigError: A folder is given for a factory.
        DataError: A factory returns the train split if it is called without arguments, or both
            splits have the same images.

    Warns:
        DataWarning: Some test images are also in the train split.
    """
    train, test = dataset(name, root, "train"), dataset(name, root)
    if ":" in name and (test.split == train.split or test.digest == train.digest):
        raise DataError(
            f"{name}(split='train') and {name}() returned the same images or the same split. dent "
            "train measures the model on other images: return the test split without arguments"
        )
    if test.digest == train.digest:  # a folder and a copy of it
        raise DataError(
            f"the train split and the test split of {name} have the same images. dent train "
            "measures the model on other images than it trains on: put others into one of them"
        )
    data.warn_of_overlap(train, test)
    return train, test


def attacks(texts: Sequence[str], iterations: int | None, protocol: QueryProtocol) -> list[Attack]:
    """Return attacks by name or factory; `iterations` applies to those that do not set their own.

    Raises:
        ConfigError: an attack has no such setting, or a factory is given one.
    """
    return [
        _own_attack(text, iterations, protocol)
        if names.is_own_attack(text)
        else make_from(text, iterations=iterations, protocol=protocol)
        for text in texts
    ]


def _own_attack(factory: str, iterations: int | None, protocol: str) -> Attack:
    if iterations is not None or protocol != "frozen":
        raise ConfigError(
            f"--iterations and --protocol are for named attacks, and {factory} is a factory: set "
            "them inside it, and write those of other attacks as NAME:iterations=N"
        )
    return from_factory(factory)


def challenge_source(images: Path | None, attack: str | None, *, allow_code: bool) -> Path | Attack:
    """Return the source of the images: a file, or an attack.

    Raises:
        ConfigError: Neither or both are given, or the attack is code that is not allowed.
    """
    if (images is None) == (attack is None):
        raise ConfigError("a challenge takes either --images FILE or --attack ATTACK")
    if images is not None:
        return images
    text = attack or ""
    if names.is_own_attack(text) and not allow_code:
        raise ConfigError(
            f"--attack {text} is code that would be run to make the images. If you trust it, add "
            "--allow-code. If not, ask its author for the images and pass --images."
        )
    (made,) = attacks([text], None, "frozen")
    return made


def check_suite(
    suite: str | None,
    *,
    attack: Sequence[str] | None,
    iterations: int | None,
    protocol: str,
    static: bool,
) -> None:
    """Refuse options that contradict `--suite`, or that need it.

    Raises:
        ConfigError: there is such an option. The message says what to leave out.
    """
    if suite is None:
        raise ConfigError(
            "--budget and --to-the-end need a suite: add --suite dynamic, or leave them out."
        )
    options = {
        "--attack": bool(attack),
        "--iterations": iterations is not None,
        "--protocol published": protocol != "frozen",
        "--no-static": not static,
    }
    useless = [option for option, is_given in options.items() if is_given]
    if useless:
        raise ConfigError(
            f"--suite {suite} fixes its attacks, their iterations and the protocol, and needs the "
            f"static model: leave out {', '.join(useless)}, or leave out --suite."
        )


def defenses(texts: Sequence[str], model: torch.nn.Module) -> dict[str, Defense]:
    """Return defenses of one model. The name of each is what the user typed, or its file's stem.

    Raises:
        ConfigError: two have the same name, or a file has the name of a built-in defense.
    """
    by_name: dict[str, Defense] = {}
    for text in texts:
        is_file = text.lower().endswith(".json")
        name = Path(text).stem if is_file else text
        if name in by_name:
            raise ConfigError(f"two defenses are called {name!r}: pass each one once")
        if is_file and name in registry.names():
            raise ConfigError(
                f"{text} would have the name {name!r} of a built-in defense: rename the file"
            )
        # The static model is `model` itself, whether the user names it or it is added.
        by_name[name] = model if text == STATIC else registry.make(text, model)
    return by_name


def subject(
    model_name: str,
    images: ImageDataset,
    model: torch.nn.Module,
    defenses: Mapping[str, Defense],
    attacks: Sequence[Attack],
    threat: ThreatModel,
) -> Subject:
    """Return the subject of an evaluation.

    Raises:
        InputError: a sample of the dataset is not inside the threat model's bounds.
    """
    sample, _ = images.batch([0])
    low, high = threat.bounds
    if not low <= float(sample.min()) <= float(sample.max()) <= high:
        raise InputError(
            f"{images.name} has pixels outside the bounds {low:g} to {high:g} of the threat model."
        )
    return Subject(
        model=model,
        dataset=images,
        defenses=defenses,
        attacks=tuple(attacks),
        threat=threat,
        model_name=model_name,
    )


def threat(norm: str, eps: str | None, swept: tuple[Over, list[Value]] | None) -> ThreatModel:
    """Make the threat model of a run, or of the first run of a sweep over eps.

    Args:
        norm: `linf`, `l2` or `l1`.
        eps: The radius; None for the norm's default.
        swept: The setting and the values of a sweep, if there is one.

    Raises:
        ConfigError: eps is not a valid radius, or the norm has no default.
    """
    if eps is None and swept is not None and swept[0] == "eps":
        eps = str(swept[1][0])
    return ThreatModel(norm, usual_eps(norm) if eps is None else eps)


def swept(over: str | None, mix: str | None) -> tuple[Over, list[Value]] | None:
    """Read the setting and the values of a sweep; None if there is only one run.

    Args:
        over: `batch-size=1,2,4`, `eps=2/255,8/255`, `order=dataset,by-class` and the like.
        mix: One share, or several for a sweep.

    Raises:
        ConfigError: the setting or a value is invalid, or both options ask for several runs.
    """
    if over is None and (mix is None or "," not in mix):
        return None
    if over is not None and mix is not None and ("," in mix or over.startswith("mix=")):
        raise ConfigError(
            f"--sweep {over} and --mix {mix} both make several runs: use one of them."
        )
    name, _, listed = (over or f"mix={mix}").partition("=")
    settings: dict[str, Over] = {setting.replace("_", "-"): setting for setting in get_args(Over)}
    if name not in settings or not listed:
        raise ConfigError(
            f"--sweep expected SETTING=VALUE,VALUE with one of {', '.join(settings)}, got {over!r}."
        )
    kinds: dict[str, Callable[[str], Value]] = {
        "batch_size": int,
        "n": int,
        "seed": int,
        "mix": _share,
    }
    kind = kinds.get(settings[name], str)
    try:
        return settings[name], [kind(value) for value in listed.split(",")]
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{name}={listed}: {error}.") from error


def check_swept(sweep: str, over: Over, typed: Mapping[str, str]) -> None:
    """Refuse an option that sets what a sweep varies.

    Args:
        sweep: The value of `--sweep`.
        over: The setting that it varies.
        typed: What the user typed, by the name of the parameter.

    Raises:
        ConfigError: There is such an option.
    """
    for name in (over, "ids") if over == "n" else (over,):
        if name in typed:
            subject = "choose the samples" if over == "n" else f"set {name.replace('_', '-')}"
            raise ConfigError(f"--sweep {sweep} and {typed[name]} both {subject}: leave one out")


def say_how_many(
    n: int | None, images: ImageDataset, swept: tuple[Over, Sequence[Value]] | None = None
) -> None:
    """Print a note if the user asked for more samples than the dataset has.

    Args:
        n: The value of `--n`; None without it.
        images: The dataset.
        swept: The setting and the values of a sweep; None if there is only one run.
    """
    asked = [] if n is None else [("--n ", n)]
    if swept is not None and swept[0] == "n":
        asked = [("--sweep n=", max(int(value or 0) for value in swept[1]))]
    for option, count in asked:
        if count > len(images):
            console.note(
                f"{option}{count} is larger than {images.name}: using all "
                f"{counted(len(images), 'image')}."
            )


def reattack(count: str | None, nonce: str | None, *, records_only: bool) -> Reattack | None:
    """Return which attacks to run again; None without `--reattack`.

    Args:
        count: How many, or `all`.
        nonce: The nonce that draws them.
        records_only: Whether the check loads no model.

    Raises:
        ConfigError: The options contradict each other, or `count` is neither a number nor `all`.
    """
    if count is None:
        if nonce is not None:
            raise ConfigError("--reattack-nonce draws attacks to run again: add --reattack K.")
        return None
    if records_only:
        raise ConfigError("--reattack needs the model: leave out --records-only.")
    if count == "all":
        if nonce is not None:
            raise ConfigError("--reattack all draws nothing: leave out --reattack-nonce.")
        return Reattack()
    if not count.isdecimal():
        raise ConfigError(f"--reattack expected a number or all, got {count!r}.")
    if not nonce:
        raise ConfigError(
            f"--reattack {count} needs --reattack-nonce TEXT, a random text that selects the "
            "attacks. Choose it after the run is finished, so that its author cannot know which "
            "attacks you will check. Or use --reattack all."
        )
    return Reattack(int(count), nonce)


def share(mix: str | None) -> float | None:
    """Read one share of a batch.

    Raises:
        ConfigError: it is not a number above 0, up to 1.
    """
    return None if mix is None else _share(mix)


def _share(text: str) -> float:
    try:
        read = float(text)
    except ValueError:
        read = math.nan
    if not 0 < read <= 1:
        raise ConfigError(f"--mix expected a share above 0, up to 1, such as 0.25, got {text!r}.")
    return read
