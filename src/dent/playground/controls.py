"""The controls of the page, and the `Setup` from their values."""

from dataclasses import dataclass
from typing import Any, Final

import gradio as gr

from dent.errors import ConfigError
from dent.playground.setup import (
    DEFENSES,
    LARGEST_EPS,
    MOST_ITERATIONS,
    MOST_MEMBERS,
    MOST_STEPS,
    Rung,
    Setup,
    offered_models,
    usual_threat,
)
from dent.support.checks import is_number
from dent.threat import Norm, ThreatModel, usual_eps

_USUAL: Final = Setup(usual_threat("resnet-14-2-linf"))
_NORMS: Final = (("l∞", "linf"), ("l2", "l2"))
_ATTACKS: Final = (("PGD", "pgd"), ("APGD-CE", "apgd-ce"))
_RUNGS: Final[tuple[tuple[str, Rung], ...]] = (
    ("Transfer: every image that was tried on static", "transfer"),
    ("Stop-gradient: through the last forward, as in the paper", "stop-gradient"),
    ("Unrolled: exact gradient through all steps, half the iterations", "unrolled"),
)


@dataclass(frozen=True)
class Controls:
    """The components of the controls, in the order in which `read` takes their values."""

    model: gr.Dropdown
    defense: gr.Radio
    norm: gr.Radio
    eps: gr.Slider
    attack: gr.Radio
    rungs: gr.CheckboxGroup
    iterations: gr.Slider
    steps: gr.Slider
    batch_size: gr.Slider
    target: gr.Radio
    seed: gr.Number

    @property
    def components(self) -> list[Any]:
        """All components, in order."""
        return [getattr(self, name) for name in self.__dataclass_fields__]


def controls() -> Controls:
    """Create the components in the current layout block of gradio."""
    model = gr.Dropdown(list(offered_models()), value=_USUAL.model, label="Model")
    defense = gr.Radio(list(DEFENSES), value=_USUAL.defense, label="Defense")
    with gr.Row():
        norm = gr.Radio(list(_NORMS), value=_USUAL.threat.norm, label="Norm", min_width=110)
        attack = gr.Radio(list(_ATTACKS), value=_USUAL.attack, label="Attack", min_width=160)
    eps = gr.Slider(**_scale(_USUAL.threat))
    rungs = gr.CheckboxGroup(
        list(_RUNGS),
        value=list(_USUAL.rungs),
        label="Against the defense",
        info="An attack that uses more of the adaptation may break more.",
        elem_id="rungs",
    )
    with gr.Accordion("More", open=False):
        iterations = gr.Slider(
            1, MOST_ITERATIONS, _USUAL.iterations, step=1, label="Iterations of the attack"
        )
        steps = gr.Slider(1, MOST_STEPS, _USUAL.config.steps, step=1, label="Steps of the defense")
        batch_size = gr.Slider(
            1,
            MOST_MEMBERS,
            _USUAL.batch_size,
            step=1,
            label="Batch size",
            info="The image and bundled ones, which it is adapted to together with.",
        )
        target = gr.Radio(
            [("The whole batch", "batch"), ("The image alone", "image")],
            value=_USUAL.target,
            label="Attacked",
        )
        seed = gr.Number(
            _USUAL.seed, precision=0, minimum=0, label="Seed", info="Of company and attacks."
        )
    return Controls(
        model, defense, norm, eps, attack, rungs, iterations, steps, batch_size, target, seed
    )


def read(
    model: str,
    defense: str,
    norm: Norm,
    eps: float,
    attack: Any,
    rungs: list[Rung],
    iterations: float,
    steps: float,
    batch_size: float,
    target: Any,
    seed: float | None,
) -> Setup:
    """Return the setup for the values of the controls.

    Raises:
        ConfigError: A value is missing or out of range.
    """
    if not is_number(eps):
        raise ConfigError(f"eps must be a number, got {eps!r}")
    return Setup(
        threat=ThreatModel(norm, f"{eps:g}/255" if norm == "linf" else f"{eps:g}"),
        model=model,
        defense=defense,
        steps=_whole("steps", steps),
        attack=attack,
        rungs=tuple(rung for _, rung in _RUNGS if rung in rungs),
        iterations=_whole("iterations", iterations),
        batch_size=_whole("batch size", batch_size),
        target=target,
        seed=_whole("seed", seed),
    )


def for_model(model: str) -> tuple[Any, Any]:
    """Return the values of norm and eps that a model was trained against."""
    threat = usual_threat(model)
    return threat.norm, gr.Slider(**_scale(threat))


def for_norm(norm: Norm) -> Any:
    """Return the eps slider with the range and the usual value for a norm."""
    return gr.Slider(**_scale(ThreatModel(norm, usual_eps(norm))))


def for_defense(defense: str) -> int:
    """Return the number of steps of a preset."""
    return DEFENSES[defense].steps


def _scale(threat: ThreatModel) -> dict[str, Any]:
    if threat.norm == "linf":
        return {
            "minimum": 0,
            "maximum": LARGEST_EPS["linf"] * 255,
            "value": round(threat.eps * 255, 6),
            "step": 0.5,
            "label": "eps, in 1/255",
        }
    return {
        "minimum": 0,
        "maximum": LARGEST_EPS["l2"],
        "value": threat.eps,
        "step": 0.05,
        "label": "eps",
    }


def _whole(name: str, value: object) -> int:
    if not isinstance(value, int | float) or value != int(value):
        raise ConfigError(f"{name} must be a whole number, got {value!r}")
    return int(value)
