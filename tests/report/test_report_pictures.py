"""Images, charts and the figure for a README: pixels, geometry and text."""

import base64
import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dent.adaptation import smoothing
from dent.config import SmoothingConfig
from dent.errors import ConfigError
from dent.evaluation import EvaluationResult
from dent.evaluation.records.schema import Trace
from dent.report import figure, load_run, pictures, wording
from dent.report.charts import Curve, Value, chart, nice_ticks, whole_ticks
from dent.report.flags import Flags
from dent.report.gallery import ExhibitAttempt, Picture, gallery
from dent.report.html import environment, to_html
from dent.report.loading import load_runs
from dent.report.plots import sigma_chart
from tests.report.conftest import letters_of


def _decoded(uri: str) -> torch.Tensor:
    content = base64.b64decode(uri.removeprefix("data:image/png;base64,"), validate=True)
    with Image.open(io.BytesIO(content)) as image:
        image.verify()
    with Image.open(io.BytesIO(content)) as image:
        flat = torch.tensor(list(image.tobytes()), dtype=torch.uint8)
        return flat.reshape(image.height, image.width, -1).permute(2, 0, 1)


@settings(max_examples=20, deadline=None)
@given(
    channels=st.sampled_from([1, 3]),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_png_data_uri_preserves_the_pixels(
    channels: int, height: int, width: int, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (channels, height, width), generator=draw, dtype=torch.uint8)
    assert torch.equal(_decoded(pictures.data_uri(pixels / 255)), pixels)


def test_gallery_shows_the_recorded_images_and_predictions(sample_run: Path) -> None:
    loaded = load_run(sample_run)
    shown = gallery(loaded)
    assert shown.missing == ()
    assert len(shown.exhibits) == 6
    record = next(unit for unit in loaded.units() if unit.key == "attack/0/smoothing/apgd-ce")
    stored = loaded.adversarial(record)
    batch = loaded.plan.batches[0]
    for exhibit in shown.exhibits:
        row = batch.ids.index(exhibit.sample)
        attempt = next(each for each in exhibit.attempts if each.defense == "smoothing")
        assert attempt.submitted == "apgd-ce through the defense"
        adversarial, perturbation, smoothed = attempt.pictures
        assert torch.equal(_decoded(adversarial.source), (stored[row] * 255).round().byte())
        assert exhibit.natural is not None
        natural = _decoded(exhibit.natural.source) / 255
        delta = stored[row] - natural
        drawn = _decoded(perturbation.source).float() / 255 - 0.5
        factor = 0.5 / float(delta.abs().max()) if delta.any() else 0.0
        assert torch.allclose(drawn, delta * factor, atol=3 / 255)
        assert perturbation.caption == (
            f"perturbation ×{factor:.0f}" if factor else "no perturbation"
        )
        parameter = smoothing.initial(
            SmoothingConfig(sigma=0.7), dtype=torch.float32, device=torch.device("cpu")
        )
        expected = smoothing.smooth(stored[row : row + 1], parameter, "spherical")[0]
        assert (_decoded(smoothed.source) / 255 - expected).abs().max() <= 1 / 255
        served = record.served[row]
        assert attempt.adversarial == loaded.run.spec.dataset.classes[served or 0]
        assert attempt.adversarial_right == (served == batch.labels[row])


def test_zero_perturbation_is_gray_and_not_enlarged() -> None:
    image = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0))
    drawn, factor = pictures.enlarged(image, image)
    assert factor == 0
    assert bool((drawn == 0.5).all())


@settings(max_examples=60, deadline=None)
@given(top=st.floats(1e-6, 1e6), last=st.integers(1, 4000))
def test_ticks_are_few_and_cover_the_range(top: float, last: int) -> None:
    ticks = nice_ticks(top)
    assert 3 <= len(ticks) <= 6
    assert ticks[0] == 0
    assert ticks[-1] >= top * (1 - 1e-6)
    whole = whole_ticks(last)
    assert whole[0][0] == 0
    assert whole[-1] == (last, str(last))
    assert len(whole) <= 8
    assert len({text for _, text in whole}) == len(whole)


@settings(max_examples=60, deadline=None)
@given(low=st.floats(-1e4, -1e-3), top=st.floats(-1e4, 1e4))
def test_ticks_cover_negative_values_and_include_zero(low: float, top: float) -> None:
    ticks = nice_ticks(top, low)
    assert 3 <= len(ticks) <= 7
    assert 0 in ticks
    slack = 1e-6 * (max(top, 0.0) - low)
    assert ticks[0] <= low + slack
    assert ticks[-1] >= max(top, 0.0) - slack


def test_chart_extends_below_zero_and_marks_the_zero_line() -> None:
    values = [Value(0.0, 6.0, None, "6"), Value(1.0, -2.0, None, "-2")]
    curve = Curve("c", (), 1, False, values)
    ends = [(0.0, "0"), (1.0, "1")]
    drawn = chart("t", [curve], x_label="x", y_label="y", x_ticks=ends)
    assert [tick.text for tick in drawn.y_ticks] == ["-2", "0", "2", "4", "6"]
    assert [marker.y for marker in drawn.lines[0].markers] == [0, 200]
    assert drawn.zero == 150
    above = replace(curve, values=values[:1])
    assert chart("t", [above], x_label="x", y_label="y", x_ticks=ends).zero is None


def test_chart_scales_markers_to_its_frame_and_orders_interval_bounds() -> None:
    values = [Value(x, x / 40, (x / 50, min(x / 30, 1.0)), str(x)) for x in (0.0, 10.0, 40.0)]
    drawn = chart(
        "t",
        [Curve("c", (), 1, False, values)],
        x_label="x",
        y_label="y",
        x_ticks=[(0.0, "0"), (40.0, "40")],
        share=True,
    )
    markers = drawn.lines[0].markers
    assert [marker.x for marker in markers] == [0, 25, 100]
    assert [marker.y for marker in markers] == [200, 150, 0]
    assert all(m.low is not None and m.high is not None and m.low >= m.high for m in markers)
    assert "from 0.0% to 100.0%" in drawn.alt


def test_sigma_chart_is_drawn_only_if_sigma_is_recorded_by_step(run_path: Path) -> None:
    (run,) = load_runs([run_path])
    found = run.result.defenses["dent-nominal"]
    trace = Trace(
        rows=16,
        entropy=(2.0, 1.5, 1.0),
        sigma=(0.3, 0.2),
        sigma_by_step=((0.5, 0.5), (0.4, 0.35), (0.3, 0.2)),
        status={},
    )
    silent = trace.model_copy(update={"sigma_by_step": None})
    attacks = [attack.model_copy(update={"trace": silent}) for attack in found.attacks]
    changed = found.model_copy(update={"trace": trace, "attacks": tuple(attacks)})
    result = run.result.model_copy(update={"defenses": {"dent-nominal": changed}})
    drawn = sigma_chart(result, "dent-nominal", Flags([run]))
    assert drawn is not None
    names = [line.curve.name for line in drawn.lines]
    assert names == ["natural images, vertical", "natural images, horizontal"]
    assert [value.y for value in drawn.lines[1].curve.values] == [0.5, 0.35, 0.2]
    quiet = found.model_copy(update={"trace": silent, "attacks": tuple(attacks)})
    static = run.result.model_copy(update={"defenses": {"dent-nominal": quiet}})
    assert sigma_chart(static, "dent-nominal", Flags([run])) is None


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_figure_is_byte_identical_for_the_same_result(
    run_path: Path, result: EvaluationResult, suffix: str, tmp_path: Path
) -> None:
    first = figure(run_path, tmp_path / f"a{suffix}").read_bytes()
    assert figure(result, tmp_path / f"b{suffix}").read_bytes() == first
    if suffix == ".png":
        with Image.open(tmp_path / "a.png") as image:
            assert image.width > image.height > 300
    else:
        assert b"<dc:date>" not in first


def test_figure_shows_worst_cases_flags_and_limits(
    result: EvaluationResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(figure.__globals__["_STYLE"], "svg.fonttype", "none")
    evil = result.spec.model_copy(
        update={"model": result.spec.model.model_copy(update={"name": "$x_1$ <b> & co"})}
    )
    named = result.model_copy(update={"spec": evil})
    text = figure(named, tmp_path / "r.svg").read_text()
    said = re.sub(r"<[^>]+>", "", text)
    assert "$x_1$ &lt;b&gt; &amp; co" in said
    assert "[a] batch dependent (dent, dent-nominal)" in said
    for name, found in result.defenses.items():
        marks = f" [{letters_of(result)[name]}]" if found.raised else ""
        assert f"{name}{marks}" in said
        assert f"{wording.percent(found.worst.served.share)}{marks}" in said
    assert "No exact-gradient attack" in said


def test_figure_refuses_a_path_that_is_not_png_or_svg(
    result: EvaluationResult, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"must end in \.png or \.svg, got 'r\.pdf'"):
        figure(result, tmp_path / "r.pdf")


@pytest.mark.parametrize(
    ("value", "said"), [(0.125, "+12.5"), (-0.0312, "−3.1"), (0.0, "0.0"), (-0.0004, "0.0")]
)
def test_points_are_signed_except_for_zero(value: float, said: str) -> None:
    assert wording.points(value) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.0312, "0.031 s"),
        (4.25, "4.2 s"),
        (99.6, "100 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
    ],
)
def test_durations_are_written_in_suitable_units(value: float, said: str) -> None:
    assert wording.seconds(value) == said


def test_page_of_several_runs_has_unique_html_ids(run_path: Path, sample_run: Path) -> None:
    page = to_html(load_runs([run_path, sample_run]))
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(
    ("right", "transferred", "said"),
    [
        (False, False, "already misclassifies the natural image"),
        (True, False, "the attack found nothing better"),
        (True, True, "the attack on the static model left this image"),
    ],
)
def test_gallery_explains_why_an_unperturbed_image_was_submitted(
    right: bool, transferred: bool, said: str
) -> None:
    pictures = (Picture("", "", "adversarial"), Picture("", "", "no perturbation"))
    attempt = ExhibitAttempt("d", "pgd", pictures, "a", "a", right, right, None, transferred)
    assert said in attempt.unperturbed
    moved = replace(attempt, pictures=(Picture("", "", "perturbation ×8"),))
    assert moved.unperturbed == ""


@pytest.mark.parametrize("numeric", [True, False])
def test_numeric_axis_shifts_only_intervals_and_other_axes_whole_curves(numeric: bool) -> None:
    """Checks the HTML, since the template does the shift that keeps curves apart."""
    values = [Value(x, 0.5, (0.4, 0.6), "") for x in (0.0, 1.0, 4.0)]
    curves = [Curve(name, (), at, False, values) for at, name in enumerate("ab")]
    drawn = chart("t", curves, x_label="x", y_label="y", x_ticks=[(0.0, "0"), (4.0, "4")],
                  share=True, numeric=numeric)  # fmt: skip
    macros: Any = environment("dent.report").get_template("macros.html.j2").module
    area = ElementTree.fromstring(f"<r>{macros.chart(drawn)}</r>")  # noqa: S314
    groups = [g for g in area.iter("g") if "curve" in g.get("class", "")]
    assert len(groups) == 2
    assert all((g.get("transform") is None) is numeric for g in groups)
    for group in groups:
        assert [m.get("x") for m in group.findall("svg")] == ["0.0%", "25.0%", "100.0%"]
        whiskers = [line for line in group.findall("line") if "whisker" in line.get("class", "")]
        assert len(whiskers) == 3
        assert all((line.get("transform") is not None) is numeric for line in whiskers)
