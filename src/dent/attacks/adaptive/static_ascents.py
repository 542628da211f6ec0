"""APGD on static models, computed once and shared by several attacks on one batch.

The result depends on its settings, the batch, the models and a seed, but not on the defense. So an
attack on the static model, a transfer attack and a warm start use the same ascents. The most recent
ones are kept in this process, and within `kept_in` also in files. A kept result is bit-identical to
one that is computed again. If a model has no description, its result is computed every time.
"""

from __future__ import annotations

import hashlib
import io
from collections import OrderedDict
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import astuple, dataclass
from pickle import UnpicklingError
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, final

import torch
from torch import Tensor

from dent.adaptation.random_state import global_draws, kept_generators
from dent.attacks.adaptive.apgd import apgd, random_start
from dent.attacks.adaptive.described import described, unchanged
from dent.attacks.adaptive.objectives import Aim, mean_of
from dent.attacks.history import Recorder
from dent.attacks.losses import LossName, loss_named, runner_up
from dent.attacks.querier import Queries
from dent.storage.disk import is_there, read, write_atomically, writing
from dent.storage.errors import RecordError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from dent.attacks.adaptive.described import Description
    from dent.attacks.querier import Querier, View
    from dent.threat import ThreatModel

_KEPT_BYTES: Final = 2**29
"""Largest size of all images kept in memory, in bytes."""
_LARGEST: Final = 2**32
"""Largest size of a file that is read, in bytes."""
_DAMAGED: Final = (RuntimeError, ValueError, TypeError, LookupError, EOFError, UnpicklingError)
"""Errors of torch.load, or of its content, for a damaged file."""


@final
@dataclass(frozen=True)
class StaticAscent:
    """The settings of one ascent.

    Attributes:
        loss: The loss to maximize.
        iterations: Iterations of APGD.
        rank: Rank of the wrong class to target, by the first model's logits on the natural
            images; 0 if untargeted.
        restart: Index that gives otherwise equal ascents different random starts.
        rho: APGD halves its step if at most this share of the steps improved the loss; in
            (0, 1).
    """

    loss: LossName = "margin"
    iterations: int = 20
    rank: int = 0
    restart: int = 0
    rho: float = 0.75

    def passes(self, models: int = 1) -> Queries:
        """Return the passes through the models: natural images, start, and every iteration."""
        return Queries(self.iterations + 2, self.iterations + 1).times(models)

    def run(self, target: Querier, models: Sequence[View], threat: ThreatModel) -> Tensor:
        """Return each member's image with the highest mean loss over the models, (N, C, H, W).

        Passes and gradients are counted in the same way whether or not the result was kept.

        Args:
            target: The querier of a whole batch.
            models: Static models, at least one.
            threat: The threat model.
        """
        before = [described(model) for model in models]
        logits = [target(target.natural, view=model) for model in models]
        same = [unchanged(was, described(model)) for was, model in zip(before, models, strict=True)]
        descriptions = [each for each in same if each is not None]
        if len(descriptions) < len(models):
            found = self._ascend(target, models, logits[0], threat)
        else:
            found = self._shared(target, models, logits, threat, descriptions)
        target.recorder.join(found.recorder, own=all(m is target.defense for m in models))
        return found.images.to(target.natural, copy=True)

    def _shared(
        self,
        target: Querier,
        models: Sequence[View],
        logits: Sequence[Tensor],
        threat: ThreatModel,
        descriptions: Sequence[Description],
    ) -> _Found:
        """Return a kept result, or compute it and keep it."""
        key = self._key(target, descriptions, logits, threat)
        found = _KEPT.get(key) or _read(key, target)
        if found is None:
            before = global_draws(target.labels.device)
            found = self._ascend(target, models, logits[0], threat)
            drew = global_draws(target.labels.device) != before
            if not (drew or any(kept_generators(model, everywhere=True) for model in models)):
                _KEPT.put(key, found)
                _write(key, found)
        else:
            found.count(target)
            _KEPT.put(key, found)
            if not any(is_there(_file(folder, key)) for folder in _FOLDERS.get()):
                _write(key, found)
        return found

    def _ascend(
        self,
        target: Querier,
        models: Sequence[View],
        natural_logits: Tensor,
        threat: ThreatModel,
    ) -> _Found:
        """Run APGD on the models' mean loss, and return its images with the passes that it took."""
        gradients, zeros = target.gradients.clone(), target.zero_by_member.clone()
        done, non_finite = target.done, target.non_finite
        targets = runner_up(natural_logits, target.labels, self.rank) if self.rank else None
        outer, target.recorder = target.recorder, target.recorder.again()
        try:
            images = apgd(
                mean_of(target, models, Aim(loss_named(self.loss), targets)),
                target.natural,
                random_start(target.natural, threat, self._draws(target)),
                threat,
                iterations=self.iterations,
                rho=self.rho,
            ).images
        finally:
            recorder, target.recorder = target.recorder, outer
        return _Found(
            images.cpu(),
            target.gradients - gradients,
            target.zero_by_member - zeros,
            target.non_finite - non_finite,
            Queries(target.done.forwards - done.forwards, target.done.backwards - done.backwards),
            recorder,
        )

    def _draws(self, target: Querier) -> torch.Generator:
        text = f"{target.shared_seed}:{self.rank}:{self.restart}"
        digest = hashlib.sha256(text.encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)

    def _key(
        self,
        target: Querier,
        descriptions: Sequence[Description],
        logits: Sequence[Tensor],
        threat: ThreatModel,
    ) -> bytes:
        """Return a hash of the inputs to the ascent.

        The models' logits and descriptions represent the models. Logits are not enough: on 8-bit
        images, a model that rounds its input has the logits of one that does not.
        """
        models = [sorted(description.items()) for description in descriptions]
        inputs = (astuple(self), threat, target.shared_seed, models)
        digest = hashlib.sha256(repr(inputs).encode())
        for tensor in (target.natural, target.labels, *logits):
            digest.update(repr((tensor.shape, tensor.dtype, tensor.device)).encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.digest()


@dataclass(frozen=True)
class _Found:
    """The images of an ascent, and what it added to the counters of its batch."""

    images: Tensor
    gradients: Tensor
    zero_by_member: Tensor
    non_finite: int
    passes: Queries
    recorder: Recorder
    """Progress of the ascent, as an attack on the models themselves."""

    def count(self, target: Querier) -> None:
        counts = target.counts
        counts.gradients += self.gradients.to(counts.gradients)
        counts.zero_by_member += self.zero_by_member.to(counts.zero_by_member)
        counts.non_finite += self.non_finite
        target.count(self.passes)

    def to_plain(self) -> dict[str, Any]:
        """Return the result as tensors and numbers."""
        passes = (self.passes.forwards, self.passes.backwards)
        return dict(vars(self)) | {"passes": passes, "recorder": self.recorder.to_plain()}

    @classmethod
    def of_plain(cls, plain: dict[str, Any]) -> _Found:
        """Return the result that `to_plain` described, with its images on the CPU."""
        changed = {
            "images": plain["images"].cpu(),
            "passes": Queries(*plain["passes"]),
            "recorder": Recorder.of_plain(plain["recorder"]),
        }
        return cls(**plain | changed)


class AscentCache:
    """The most recently used results, up to a number of bytes of images."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._bytes = 0
        self._held: OrderedDict[bytes, _Found] = OrderedDict()
        self._lock = Lock()

    def get(self, key: bytes) -> _Found | None:
        """Return a result, or None."""
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
            return self._held.get(key)

    def put(self, key: bytes, found: _Found) -> None:
        """Keep a result, and drop the oldest ones if there is no room."""
        with self._lock:
            if key in self._held:
                return
            self._held[key] = found
            self._bytes += found.images.nbytes
            while self._bytes > self._most:
                _, oldest = self._held.popitem(last=False)
                self._bytes -= oldest.images.nbytes

    def clear(self) -> None:
        """Drop all results."""
        with self._lock:
            self._held.clear()
            self._bytes = 0


_KEPT: Final = AscentCache(_KEPT_BYTES)
_FOLDERS: ContextVar[tuple[Path, ...]] = ContextVar("folders of static ascents", default=())


@contextmanager
def kept_in(folder: Path, *others: Path) -> Iterator[None]:
    """Also keep results in files while in this context, for other processes.

    Args:
        folder: Folder for every result, created with the first one.
        others: Folders that are only read. They may be missing.
    """
    token = _FOLDERS.set((folder, *others))
    try:
        yield
    finally:
        _FOLDERS.reset(token)


def _write(key: bytes, found: _Found) -> None:
    for folder in _FOLDERS.get()[:1]:
        content = io.BytesIO()
        torch.save(found.to_plain(), content)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        write_atomically(_file(folder, key), content.getvalue())


def _read(key: bytes, target: Querier) -> _Found | None:
    """Return a result from the files, or None. A damaged file is ignored."""
    shape = target.natural.shape
    for folder in _FOLDERS.get():
        try:
            content = io.BytesIO(read(_file(folder, key), _LARGEST))
            plain = torch.load(content, map_location=target.labels.device, weights_only=True)
            found = _Found.of_plain(plain)
        except (RecordError, *_DAMAGED):
            continue
        if found.images.shape == shape:
            return found
    return None


def _file(folder: Path, key: bytes) -> Path:
    return folder / f"{key.hex()}.pt"


def forget() -> None:
    """Drop every result kept in memory. Files stay."""
    _KEPT.clear()
