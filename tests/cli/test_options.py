"""Test that an option means the same in every command, except for the options listed here."""

from collections import defaultdict
from typing import Any

import pytest
from rich.emoji import Emoji

from tests.cli.here import commands

OWN_HELP = {
    "--attack": "evaluate takes several, challenge one instead of images",
    "--out": "a run folder, a folder of weights, a page",
    "--model": "what train makes, and what others take",
    "--weights": "of the model, which may not need any; to start training from",
    "--dataset": "to evaluate on, to train on, that a served model was trained for",
    "--n": "samples that are attacked, images that are trained on",
    "--defense": "several, or the one that is served",
    "--device": "of train: accelerate takes what it finds",
    "--host": "with or without a warning that there is no authentication",
    "--source": "of datasets, of models",
}
OWN_DEFAULT = {
    "--out": "of each command",
    "--model": "of each command",
    "--dataset": "of each command",
    "--defense": "several, one, or one that has to be named",
    "--norm": "train's is the recipe's",
    "--batch-size": "train's is the recipe's",
    "--port": "one for each server",
    "--source": "of datasets, of models",
}

OWN_TYPE = {
    "--norm": "training does not support l1",
    "--out": "a folder, or its URL",
}


def options() -> dict[str, list[Any]]:
    """Map each option name that several commands use to its declarations."""
    found = defaultdict(list)
    for command in commands().values():
        for option in command.params:
            for name in option.opts:
                if name.startswith("--"):
                    found[name].append(option)
    return {name: each for name, each in found.items() if len(each) > 1}


def test_shared_options_have_one_help_text_default_and_type_except_as_listed() -> None:
    shared = options()
    assert {"--json", "--device", "--data", "--seed", "--norm", "--eps"} <= shared.keys()
    prints = {option.help for option in shared.pop("--json")}
    assert all(text.startswith("Print ") and text.endswith(" as JSON.") for text in prints)
    helps = {name for name, each in shared.items() if len({one.help for one in each}) > 1}
    assert helps == OWN_HELP.keys()
    defaults = {name for name, each in shared.items() if len({str(o.default) for o in each}) > 1}
    assert defaults == OWN_DEFAULT.keys()
    for name, each in shared.items():
        if name not in OWN_TYPE:
            types = {str(getattr(one, "type", one.param_type_name)) for one in each}
            assert len(types) == 1, name


@pytest.mark.parametrize(
    ("command", "former", "present"),
    [
        ("paper", "--weights", "--weights-folder"),
        ("verify", "--nonce", "--reattack-nonce"),
        ("board check", "--nonce", "--reattack-nonce"),
        ("board check", "--images", "--images-archive"),
    ],
)
def test_a_former_name_of_an_option_still_works(command: str, former: str, present: str) -> None:
    """Help does not show it, because it means something else in other commands."""
    found = commands()[command]
    assert not any(former in option.opts for option in found.params)
    (name,) = (option.name for option in found.params if present in option.opts)
    for given in ([former, "x"], [f"{former}=x"], [present, "x"]):
        arguments = ["x", *given]
        context = found.make_context(command, arguments)
        assert str(context.params[name]) == "x"


def test_a_short_option_means_the_same_in_every_command() -> None:
    pairs = {
        (short, tuple(name for name in option.opts if name.startswith("--")))
        for command in commands().values()
        for option in command.params
        for short in option.opts
        if short.startswith("-") and not short.startswith("--")
    }
    assert pairs == {("-o", ("--out",))}
    without = [
        name
        for name, command in commands().items()
        for option in command.params
        if "--out" in option.opts and "-o" not in option.opts
    ]
    assert not without


def test_no_help_text_contains_the_code_of_an_emoji() -> None:
    """Help replaces such codes: `module:factory: ...` once showed the picture of a factory."""
    texts = [
        text
        for command in commands().values()
        for text in (command.help, command.epilog, *(_shown(each) for each in command.params))
        if text is not None
    ]
    assert len(texts) > 200
    assert [text for text in texts if Emoji.replace(text) != text] == []


def _shown(parameter: Any) -> str:
    """Return what help shows of an option or argument."""
    shown = (getattr(parameter, "help", None), parameter.metavar, parameter.default)
    return "\n".join(str(each) for each in shown)
