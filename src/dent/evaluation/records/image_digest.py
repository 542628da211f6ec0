"""The digest of adversarial images from outside a run."""

import hashlib
from collections.abc import Mapping

import numpy as np
from torch import Tensor

from dent.evaluation.records.plan import Plan


def digest_of(images: Mapping[int, Tensor], plan: Plan) -> str:
    """Return the digest of images, which does not depend on the format and order of a file.

    It is the SHA-256 of the samples' ids in ascending order, as int64, followed by their images in
    that order, as float32; all little-endian.

    Args:
        images: The images of the attacked members, by batch index.
        plan: The batches of the run.
    """
    rows = {
        sample: row
        for index, laid in images.items()
        for sample, row in zip(plan.batches[index].attacked_ids, laid, strict=True)
    }
    digest = hashlib.sha256(np.array(sorted(rows), dtype="<i8").tobytes())
    for sample in sorted(rows):
        digest.update(rows[sample].cpu().numpy().astype("<f4").tobytes())
    return digest.hexdigest()
