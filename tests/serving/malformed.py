"""Malformed requests of many kinds, generated from a seed."""

import base64
import io
import json
import random
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from servers import SHAPE, npy

NPY, JSON, PNG, JPEG = "application/x-npy", "application/json", "image/png", "image/jpeg"


class Malformed(NamedTuple):
    method: str
    path: str
    headers: list[tuple[bytes, bytes]]
    body: bytes


def _array(draw: random.Random) -> bytes:
    """Return an array in `.npy` format, mostly with an invalid shape, dtype or value."""
    dims = draw.choice(
        [(), (3,), (8, 8), SHAPE, (0, *SHAPE), (1, *SHAPE), (2, 3, 8, 7), (9, *SHAPE)]
    )
    kind = draw.choice(["u1", ">f4", "<f8", "f2", "i4", "?", "c8", "U3", "O", "M8[s]", "V5"])
    array = np.zeros(dims, "f8") + draw.choice([0, 1, -1, 2, np.nan, np.inf, 1e300, 0.5])
    with np.errstate(all="ignore"):
        cast = np.zeros(dims, kind) if kind in {"U3", "O", "M8[s]", "V5"} else array.astype(kind)
    return npy(np.asfortranarray(cast) if draw.random() < 0.2 else cast)


def _header(draw: random.Random) -> bytes:
    """Return a `.npy` header that does not match the data after it."""
    shape = draw.choice(
        ["(1,3,8,8)", "(10**9,3,8,8)", "(1000000000,3,8,8)", "(-1,3,8,8)", "x", "()"]
    )
    descr = draw.choice(["'<f4'", "'O'", "'|u1'", "[('a','<f4')]", "__import__('os')", "'<f999'"])
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}".encode()
    size = draw.choice([len(text), 65535, 0, len(text) - 1])
    version = draw.choice([b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x09"])
    return b"\x93NUMPY" + version + size.to_bytes(2, "little") + text + b"\0" * draw.randrange(800)


def _picture(draw: random.Random) -> bytes:
    stream = io.BytesIO()
    mode = draw.choice(["RGB", "L", "RGBA", "1", "P", "I;16", "LA", "CMYK"])
    kind = "JPEG" if mode == "CMYK" else draw.choice(["PNG", "PNG", "JPEG", "GIF", "BMP"])
    if mode not in {"RGB", "L", "CMYK"}:
        kind = "PNG"
    Image.new(mode, (draw.choice([8, 7, 1, 300]), 8)).save(stream, kind)
    return stream.getvalue()


def _value(draw: random.Random, depth: int = 0) -> Any:
    """Return a random value for JSON."""
    if depth > 4 or draw.random() < 0.4:
        return draw.choice(
            [None, True, 0, -1, 0.5, 1e308, 10**400, "", "a", "\ud800", float("nan"), float("inf")]
        )
    if draw.random() < 0.7:
        return [_value(draw, depth + 1) for _ in range(draw.randrange(4))]
    return {draw.choice(["images", "encoded", "", "é"]): _value(draw, depth + 1) for _ in range(2)}


def _json(draw: random.Random) -> bytes:
    image = np.full(SHAPE, 0.5).tolist()
    image[draw.randrange(3)][draw.randrange(8)][draw.randrange(8)] = _value(draw, 4)
    content: Any = draw.choice(
        [
            _value(draw),
            {"images": _value(draw)},
            {"encoded": _value(draw)},
            {"images": [image]},
            {"images": [image[:2]]},
            {"encoded": [base64.b64encode(_mutated(draw, _picture(draw))).decode()]},
            {"encoded": [base64.b64encode(_picture(draw)).decode()[:-1]]},
            {"images": [image], "encoded": ["a"], "more": 1},
        ]
    )
    return json.dumps(content).encode()


def _deep(draw: random.Random) -> bytes:
    opening = draw.choice([b"[", b'{"images":', b'{"a":[', b"[["])
    return draw.choice([b"", b'{"images": ']) + opening * draw.choice([10, 500, 20000])


def _noise(draw: random.Random) -> bytes:
    return draw.randbytes(draw.randrange(300))


def _mutated(draw: random.Random, body: bytes) -> bytes:
    """Return the body truncated, doubled, or with a few bytes changed."""
    changed = bytearray(body)
    way = draw.randrange(4)
    if way == 0:
        return bytes(changed[: draw.randrange(len(changed) + 1)])
    if way == 1:
        return bytes(changed + changed)
    for _ in range(draw.randrange(1, 6)):
        if changed:
            changed[draw.randrange(len(changed))] = draw.randrange(256)
    return bytes(changed)


_BODIES: tuple[tuple[str, Callable[[random.Random], bytes]], ...] = (
    (NPY, _array), (NPY, _header), (PNG, _picture), (JPEG, _picture), (JSON, _json),
    (JSON, _deep), (JSON, _noise), (NPY, _noise), (PNG, _noise),
)  # fmt: skip
_TYPES = (NPY, JSON, PNG, JPEG, "text/html", "", "multipart/form-data; boundary=x", "a" * 500, "é")
_QUERIES = (
    "deadline=", "deadline=nan", "deadline=-inf", "deadline=1e400", "deadline=0", "deadline=%00",
    "logits=maybe", "deadline=1&deadline=x", "%ff=%fe", "a" * 3000, "logits[]=1", "deadline=0x1",
)  # fmt: skip
_PATHS = ("/", "/v1", "/v1/predict/", "/v1//predict", "/../etc/passwd", "/%00", "/metrics/x", "/é")


def malformed(seed: int) -> Malformed:
    """Return the request for a seed."""
    draw = random.Random(seed)  # noqa: S311 - no secret
    kind, make = draw.choice(_BODIES)
    body = make(draw)
    if draw.random() < 0.4:
        body = _mutated(draw, body)
    if draw.random() < 0.1:
        kind = draw.choice(_TYPES)
    headers = [(b"content-type", kind.encode())]
    if draw.random() < 0.1:
        name, value = draw.choice(
            [
                (b"content-encoding", b"gzip"), (b"content-length", b"99999999999999999999999"),
                (b"content-length", b"-1"), (b"content-length", b"\xb2"), (b"accept", b"\xff\xfe"),
                (b"x", b"y" * 5000), (b"transfer-encoding", b"bogus"), (b"cookie", b"a=;;;=b"),
            ]
        )  # fmt: skip
        headers.append((name, value))
    query = "?" + draw.choice(_QUERIES) if draw.random() < 0.1 else ""
    path = draw.choice(_PATHS) if draw.random() < 0.03 else "/v1/predict"
    method = (
        draw.choice(["GET", "PUT", "DELETE", "PATCH", "FOO"]) if draw.random() < 0.03 else "POST"
    )
    return Malformed(method, path + query, headers, body)
