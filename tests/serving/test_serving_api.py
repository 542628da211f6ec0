"""The HTTP API in process: its answers, which equal those of the evaluation, and refusals."""

import asyncio
import base64
import io
import json
import threading
import time
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from servers import (
    ALONE,
    SHAPE,
    TOGETHER,
    logits_of,
    make_engine,
    make_images,
    make_model,
    npy,
    serving,
)
from torch import nn

from dent import DENT_NOMINAL, DENT_PLUS, Dent
from dent.defenses import make
from dent.errors import ConfigError
from dent.evaluation.submission.submission import submit
from dent.serving import app as serving_app
from dent.serving.errors import RefusedError
from dent.serving.limits import Limits
from dent.serving.requests import JSON, NPY, decode

DEFENSES = {
    "together": TOGETHER,
    "alone": ALONE,
    "dent+": DENT_PLUS,
    "dent-nominal": DENT_NOMINAL,
}


def picture(image: torch.Tensor, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


@pytest.mark.parametrize("name", DEFENSES)
def test_predictions_equal_those_of_the_evaluation_for_the_same_batch(name: str) -> None:
    defense = Dent(make_model(), DEFENSES[name])
    images = make_images(6)
    expected = submit(defense, images, seed=0)

    async def ask() -> None:
        async with serving(defense) as client:
            answer = await client.ask(images)
        assert torch.equal(logits_of(answer), expected.logits)
        assert [each["label"] for each in answer["predictions"]] == [*expected.predictions]
        assert answer["predictions"][0]["name"] == "abcd"[expected.predictions[0] or 0]
        assert expected.trace.entropy is not None
        before = [each["entropy_before"] for each in answer["predictions"]]
        after = [each["entropy_after"] for each in answer["predictions"]]
        assert np.mean(before) == pytest.approx(expected.trace.entropy[0])
        assert np.mean(after) == pytest.approx(expected.trace.entropy[-1])
        assert answer["steps"] == answer["steps_configured"] == DEFENSES[name].steps
        assert not answer["degraded"]
        assert answer["notes"] == []

    asyncio.run(ask())


@pytest.mark.parametrize("name", ["static", "hedge", "anti-adversary", "smoothing", "tent-online"])
def test_reference_defenses_are_served_as_evaluated(name: str) -> None:
    defense = make(name, make_model())
    images = make_images(3)
    if name == "tent-online":
        defense.reset()  # type: ignore[attr-defined]
    expected = submit(defense, images, seed=0).logits

    async def ask() -> None:
        async with serving(engine=make_engine(make(name, make_model()))) as client:
            answers = [await client.ask(images) for _ in range(2)]  # state must not persist
        for answer in answers:
            assert torch.equal(logits_of(answer), expected)

    asyncio.run(ask())


def test_all_request_formats_of_the_same_images_get_the_same_answer() -> None:
    images = make_images(2)
    files = [base64.b64encode(picture(image)).decode() for image in images]
    whole = (images * 255).round().byte().numpy()

    async def ask() -> None:
        async with serving(Dent(make_model(), ALONE)) as client:
            expected = logits_of(await client.ask(images))
            for answer in (
                await client.post(npy(whole), logits=True),
                await client.ask_json({"images": images.tolist()}, logits=True),
                await client.ask_json({"encoded": files}, logits=True),
            ):
                assert answer.status_code == 200, answer.text
                assert torch.equal(logits_of(answer.json()), expected)
            one = await client.post(picture(images[0]), "image/png", logits=True)
            same = await client.post(npy(images[0]), logits=True)
            assert torch.equal(logits_of(one.json()), logits_of(same.json()))
            jpeg = await client.post(picture(images[0], "JPEG"), "image/jpeg")
            assert jpeg.status_code == 200, jpeg.text
            assert jpeg.json()["predictions"][0]["logits"] is None

    asyncio.run(ask())


def test_single_image_gets_a_note_that_its_own_statistics_are_noise() -> None:
    async def ask() -> None:
        async with serving(Dent(make_model(), DENT_NOMINAL)) as client:
            alone = await client.ask(make_images(1))
            two = await client.ask(make_images(2))
        assert alone["predictions"][0]["status"] == "own-statistics"
        assert "noise" in alone["notes"][0]
        assert two["notes"] == []
        assert {each["status"] for each in two["predictions"]} == {"adapted"}

    asyncio.run(ask())


def test_single_image_gets_a_note_that_information_maximization_did_nothing() -> None:
    model = make_model()
    image = make_images(1)

    async def ask() -> None:
        async with serving(Dent(model, DENT_PLUS)) as client:
            alone = await client.ask(image)
            two = await client.ask(make_images(2))
        assert alone["predictions"][0]["status"] == "no-step"
        assert "static model" in alone["notes"][0]
        with torch.no_grad():
            torch.testing.assert_close(logits_of(alone), model(image))
        assert two["notes"] == []
        assert {each["status"] for each in two["predictions"]} == {"adapted"}

    asyncio.run(ask())


NAN = float("nan")
REFUSED = {
    "a body that is no array": (b"no", NPY, 400, None),
    "a pickle": (npy(np.array([object()], dtype=object)), NPY, 422, None),
    "whole numbers that are no bytes": (npy(np.zeros((1, *SHAPE), "int64")), NPY, 422, None),
    "another size": (npy(np.zeros((1, 3, 8, 9), "float32")), NPY, 422, None),
    "Fortran order": (npy(np.asfortranarray(np.zeros((2, *SHAPE)))), NPY, 422, None),
    "no image": (npy(np.zeros((0, *SHAPE))), NPY, 422, None),
    "an array cut short": (npy(np.zeros((2, *SHAPE)))[:-1], NPY, 400, None),
    "NaN in the second": (
        npy(np.stack([np.zeros(SHAPE), np.full(SHAPE, np.nan)])), NPY, 422, 1,
    ),
    "NaN in JSON": (
        json.dumps({"images": [*np.zeros((1, *SHAPE)).tolist(), [[[NAN] * 8] * 8] * 3]}).encode(),
        JSON, 422, 1,
    ),
    "bytes as floats": (npy(np.full((1, *SHAPE), 255.0)), NPY, 422, 0),
    "slightly negative": (npy(np.full((1, *SHAPE), -1e-6)), NPY, 422, 0),
    "text for a pixel": (
        json.dumps({"images": [[[["0.5"] * 8] * 8] * 3]}).encode(), JSON, 422, 0,
    ),
    "null for a pixel": (
        json.dumps({"images": [[[[None] * 8] * 8] * 3]}).encode(), JSON, 422, 0,
    ),
    "a ragged image": (
        json.dumps({"images": [[[[0.5] * 8] * 8] * 2 + [[[0.5] * 7] * 8]]}).encode(),
        JSON, 422, 0,
    ),
    "both fields": (b'{"images": [[[[0]]]], "encoded": ["a"]}', JSON, 422, None),
    "an unknown field": (b'{"pixels": []}', JSON, 422, None),
    "JSON cut short": (b'{"images": [[', JSON, 400, None),
    "JSON too deep": (b'{"a": ' * 10000, JSON, 400, None),
    "JSON of too many lists": (b'{"images": ' + b"[" * 100000, JSON, 413, None),
    "a number beyond floats": (b'{"images": [[[[1' + b"0" * 400 + b"]]]]}", JSON, 422, 0),
    "no base64": (b'{"encoded": ["!!"]}', JSON, 400, 0),
    "base64 of no picture": (b'{"encoded": ["aGVsbG8="]}', JSON, 400, 0),
    "a broken picture": (picture(make_images(1)[0])[:70], "image/png", 400, None),
    "a JPEG that says PNG": (picture(make_images(1)[0], "JPEG"), "image/png", 400, None),
    "a larger picture": (picture(torch.zeros(3, 9, 8)), "image/png", 422, None),
    "text": (b"hello", "text/plain", 415, None),
    "no type": (b"hello", "", 415, None),
    "too many images": (npy(np.zeros((5, *SHAPE), "uint8")), NPY, 413, None),
    "too many in JSON": (json.dumps({"encoded": ["a"] * 5}).encode(), JSON, 413, None),
    "too many bytes": (b"0" * 120_001, NPY, 413, None),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_invalid_requests_are_refused_with_status_and_image_index(case: str) -> None:
    body, kind, status, image = REFUSED[case]

    async def ask() -> None:
        async with serving(limits=Limits(max_batch_size=4, max_body_bytes=120_000)) as client:
            response = await client.post(body, kind)
            assert response.status_code == status, response.text
            error = response.json()["error"]
            assert error["image"] == image
            assert error["message"]
            metrics = await client.metrics()
            assert metrics[f"dent_refused_total,reason={error['code']}"] == 1
            assert metrics["dent_non_finite_inputs_total"] == ("NaN" in case)
            await client.ask(make_images(1))  # the server still answers

    asyncio.run(ask())


ADVICE = {
    "channels last": (npy(np.zeros((2, 8, 8, 3))), NPY, "transpose(0, 3, 1, 2)"),
    "normalized pixels": (npy(np.full((1, *SHAPE), -2.0)), NPY, "leave the normalization to the"),
    "bytes as floats": (npy(np.full((1, *SHAPE), 255.0)), NPY, "divide bytes by 255"),
    "one image in JSON": (
        json.dumps({"images": np.zeros(SHAPE).tolist()}).encode(), JSON, "in lists (N, 3, 8, 8)",
    ),
    "no image in JSON": (b'{"images": []}', JSON, "got images in none"),
    "both fields": (b'{"images": [[[[0]]]], "encoded": ["a"]}', JSON, "got images in both"),
    "another kind of picture": (
        b'{"encoded": ["aGVsbG8="]}', JSON, "image 0 is neither a PNG nor a JPEG",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ADVICE)
def test_a_refusal_says_what_was_expected(case: str) -> None:
    body, kind, advice = ADVICE[case]
    with pytest.raises(RefusedError) as caught:
        decode(kind, body, SHAPE, 4)
    assert advice in caught.value.message


@pytest.mark.parametrize("query", ["deadlin=0.5", "Logits=true", "logits=true&x"])
def test_a_mistyped_query_parameter_is_refused(query: str) -> None:
    async def ask() -> None:
        async with serving() as client:
            response = await client.http.post(
                f"/v1/predict?{query}",
                content=npy(make_images(1)),
                headers={"content-type": NPY},
            )
        assert response.status_code == 422
        assert "expected deadline or logits" in response.json()["error"]["message"]

    asyncio.run(ask())


def test_decompression_bomb_is_refused_with_its_size_in_the_message() -> None:
    stream = io.BytesIO()
    Image.new("L", (5000, 5000)).save(stream, "PNG")
    assert len(stream.getvalue()) < 500_000

    async def ask() -> None:
        async with serving() as client:
            response = await client.post(stream.getvalue(), "image/png")
        assert response.status_code == 422
        assert "5000x5000" in response.json()["error"]["message"]

    asyncio.run(ask())


def test_oversized_and_compressed_bodies_are_refused() -> None:
    async def ask() -> None:
        sent = 0

        async def stream() -> object:
            nonlocal sent
            for _ in range(100):
                sent += 1
                yield b"0" * 1000

        async with serving(limits=Limits(max_body_bytes=5000)) as client:
            response = await client.http.post(
                "/v1/predict", content=stream(), headers={"content-type": "application/x-npy"}
            )
            packed = await client.http.post(
                "/v1/predict", content=b"x", headers={"content-encoding": "gzip"}
            )
        assert response.status_code == 413
        assert response.headers["connection"] == "close"
        assert packed.status_code == 415

    asyncio.run(ask())


@pytest.mark.parametrize(
    "pixels", [b"[" + b"[0]," * 200_000 + b"[0]]", b"[[" + b"0," * 400_000 + b"0]]"]
)
def test_json_of_many_lists_or_numbers_is_refused_before_it_is_parsed(pixels: bytes) -> None:
    body = b'{"images":[[' + pixels + b"]]}"
    tracemalloc.start()
    try:
        with pytest.raises(RefusedError) as refused:
            decode(JSON, body, SHAPE, 128)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert refused.value.status == 413
    assert "more numbers or lists than 128 images of shape 3 x 8 x 8" in refused.value.message
    assert peak < len(body)


def test_the_largest_json_batch_is_answered_and_one_image_more_is_refused() -> None:
    images = make_images(128)
    largest = {"images": images.tolist(), "encoded": []}
    assert torch.equal(decode(JSON, json.dumps(largest).encode(), SHAPE, 128), images)
    with pytest.raises(RefusedError) as refused:
        decode(JSON, json.dumps({"images": make_images(129).tolist()}).encode(), SHAPE, 128)
    assert refused.value.status == 413


def test_json_bodies_are_parsed_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    inside, most, together = 0, 0, threading.Lock()

    def counting(kind: str, *more: Any) -> torch.Tensor:
        nonlocal inside, most
        with together:
            inside += 1
            most = max(most, inside)
        time.sleep(0.05)
        with together:
            inside -= 1
        return decode(kind, *more)

    monkeypatch.setattr(serving_app, "decode", counting)
    content = {"images": make_images(2).tolist()}

    async def ask(kind: str) -> int:
        nonlocal most
        most = 0
        async with serving(Dent(make_model(), ALONE)) as client:
            body = json.dumps(content).encode() if kind == JSON else npy(make_images(2))
            answers = await asyncio.gather(*(client.post(body, kind) for _ in range(3)))
            assert {answer.status_code for answer in answers} == {200}
        return most

    assert asyncio.run(ask(JSON)) == 1
    assert asyncio.run(ask(NPY)) > 1


@pytest.mark.parametrize(("kind", "content_type"), [("PNG", "image/png"), ("MPO", "image/jpeg")])
def test_a_file_of_several_frames_is_refused_with_their_number(
    kind: str, content_type: str
) -> None:
    stream = io.BytesIO()
    frames = [Image.new("RGB", SHAPE[1:], (value, 0, 0)) for value in (0, 100, 200)]
    frames[0].save(stream, kind, save_all=True, append_images=frames[1:])
    with pytest.raises(RefusedError, match="one 8-bit RGB or grayscale frame, got 3 frames"):
        decode(content_type, stream.getvalue(), SHAPE, 4)


def test_an_unexpected_error_is_counted_among_the_responses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def ask() -> None:
        async with serving(Dent(make_model(), ALONE)) as client:
            monkeypatch.setattr(client.server, "about", lambda: {}["a bug"])
            monkeypatch.setattr(serving_app, "respond", lambda *_, **__: {}["a bug"])
            assert (await client.http.get("/v1/model")).status_code == 500
            assert (await client.post(npy(make_images(2)))).status_code == 500
            metrics = await client.metrics()
            for route in ("/v1/model", "/v1/predict"):
                assert metrics[f"dent_responses_total,route={route},status=500"] == 1

    asyncio.run(ask())


def test_body_that_arrives_too_slowly_gets_a_408() -> None:
    async def ask() -> None:
        async def stream() -> object:
            yield b"0"
            await asyncio.sleep(60)

        async with serving(limits=Limits(timeout=0.05)) as client:
            response = await client.http.post("/v1/predict", content=stream())
        assert response.status_code == 408

    asyncio.run(ask())


def test_info_routes_answer_and_unknown_paths_and_bad_deadlines_are_refused() -> None:
    async def ask() -> None:
        async with serving(Dent(make_model(), ALONE)) as client:
            assert (await client.http.get("/healthz")).json() == {"status": "alive"}
            assert (await client.http.get("/readyz")).json() == {"status": "ready"}
            about = (await client.http.get("/v1/model")).json()
            assert about["shape"] == [*SHAPE]
            assert about["shares_batches"] is True
            assert about["defense"]["settings"]["steps"] == ALONE.steps
            schema = (await client.http.get("/openapi.json")).json()
            post = schema["paths"]["/v1/predict"]["post"]
            assert {*post["requestBody"]["content"]} == {
                "application/json", "application/x-npy", "image/png", "image/jpeg",
            }  # fmt: skip
            assert {*post["responses"]} == {
                "200", "400", "408", "413", "415", "422", "500", "503", "504",
            }  # fmt: skip
            for path, status in {"/nowhere": 404, "/v1/predict": 405}.items():
                response = await client.http.get(path)
                assert response.status_code == status
                assert response.json()["error"]["code"]
            for query in ("nan", "-1", "soon", "inf"):
                response = await client.post(b"", deadline=query)
                assert response.status_code == 422
                assert "deadline" in response.json()["error"]["message"]

    asyncio.run(ask())


def test_stateful_defense_without_reset_is_refused() -> None:
    class Keeps(nn.Module):
        stateful = True
        batch_dependent = False

        def adapt(self, x: torch.Tensor) -> None: ...

        def predict(self, x: torch.Tensor, adaptation: None) -> torch.Tensor:
            return x.flatten(1)

    with pytest.raises(ConfigError, match="reset"):
        make_engine(Keeps())


def test_failing_defense_gives_a_500_and_the_next_request_is_answered() -> None:
    class Moody(nn.Module):
        broken = False

        def __init__(self) -> None:
            super().__init__()
            self.model = make_model()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if Moody.broken:
                raise MemoryError("no room")
            found: torch.Tensor = self.model(x)
            return found

    async def ask() -> None:
        async with serving(Dent(Moody(), replace(TOGETHER, steps=1))) as client:
            Moody.broken = True
            response = await client.post(npy(make_images(1)))
            Moody.broken = False
            assert response.status_code == 500
            assert response.json()["error"]["code"] == "failed"
            await client.ask(make_images(1))

    asyncio.run(ask())


def test_metrics_count_batches_images_steps_and_responses() -> None:
    calm = make_images(8)

    async def ask() -> None:
        async with serving(Dent(make_model(), DENT_NOMINAL)) as client:
            await client.ask(calm)
            metrics = await client.metrics()
        assert metrics["dent_batch_images_sum"] == 8
        assert metrics["dent_batch_requests_sum"] == 1
        assert metrics["dent_request_seconds_count"] == 1
        assert metrics["dent_images_total,status=adapted"] == 8
        assert metrics["dent_entropy_before_nats_count"] == 8
        assert metrics["dent_entropy_after_nats_count"] == 8
        assert metrics["dent_sigma_pixels_count"] == 1
        assert metrics["dent_steps_total"] == DENT_NOMINAL.steps
        assert metrics["dent_responses_total,route=/v1/predict,status=200"] == 1
        assert metrics["dent_requests_inside"] == 0
        assert 0 < metrics["dent_confidence"] < 1

    asyncio.run(ask())
