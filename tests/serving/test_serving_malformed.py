"""No malformed request gets a 500 or stops the server."""

import asyncio
import base64
import io
import json
from collections import Counter

import pytest
from malformed import malformed
from PIL import EpsImagePlugin, Image
from servers import SHAPE, make_images, serving

from dent.serving.errors import RefusedError
from dent.serving.limits import Limits
from dent.serving.requests import decode

LIMITS = Limits(max_batch_size=4, max_body_bytes=60_000)
EXPECTED = {200, 400, 404, 405, 413, 415, 422, 504}
"""504 is for requests with a tiny deadline, 200 for requests that a mutation left valid."""


async def submit(seeds: range) -> Counter[int]:
    found: Counter[int] = Counter()
    async with serving(limits=LIMITS) as client:
        for seed in seeds:
            method, path, headers, body = malformed(seed)
            response = await client.http.request(method, path, headers=headers, content=body)
            assert response.status_code in EXPECTED, (seed, response.status_code, response.text)
            if response.status_code != 200:
                error = response.json()["error"]
                assert error["code"], seed
                assert error["message"], seed
            found[response.status_code] += 1
        assert client.server.admission.inside == 0
        assert len((await client.ask(make_images(2)))["predictions"]) == 2
    return found


def check(seeds: range) -> None:
    found = asyncio.run(submit(seeds))
    assert {400, 404, 405, 413, 415, 422} <= {*found}
    assert found[200] + found[504] < 0.1 * len(seeds)  # at least 90% must be malformed


def test_five_hundred_malformed_requests_are_refused() -> None:
    check(range(500))


@pytest.mark.slow
def test_ten_thousand_malformed_requests_are_refused() -> None:
    check(range(10_000))


def test_error_for_an_invalid_png_does_not_show_a_python_object() -> None:
    with pytest.raises(RefusedError) as caught:
        decode("image/png", b"{}", SHAPE, 4)
    assert (caught.value.status, caught.value.message) == (400, "the body is not a PNG.")


@pytest.mark.parametrize("kind", ["image/png", "image/jpeg", "application/json"])
def test_postscript_sent_as_another_type_is_refused_without_ghostscript(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: pytest.fail("Ghostscript"))
    content = io.BytesIO()
    Image.new("RGB", (8, 8)).save(content, "eps")
    body = content.getvalue()
    if kind == "application/json":
        body = json.dumps({"encoded": [base64.b64encode(body).decode()]}).encode()
    with pytest.raises(
        RefusedError, match=r"is (not a (PNG|JPEG)|neither a PNG nor a JPEG)\."
    ) as refused:
        decode(kind, body, SHAPE, 4)
    assert refused.value.status == 400
