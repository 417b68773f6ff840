"""Module names as people read them on a page."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ireko_trainer.report.content import MatrixBits

_IN_LAYER = re.compile(r"^(?:.*\.)?(\d+)\.(.+)$")
_SAYS_NOTHING = frozenset({"dense", "self", "weight"})


def block_label(name: str) -> str:
    """`encoder.layer.3` → `layer 3`; other names as they are."""
    last = name.rsplit(".", 1)[-1]
    return f"layer {last}" if last.isdigit() else name


def matrix_bits(module_bits: Mapping[str, int | None]) -> tuple[MatrixBits, ...]:
    """The widths of a model's matrices by module name, as rows and columns of a bit map.

    `bert.encoder.layer.0.attention.self.query` is `attention query` of `layer 0`; what is in no layer belongs to
    the block `embeddings` or `head`.
    """
    return tuple(_named(name, bits) for name, bits in module_bits.items())


def _named(name: str, bits: int | None) -> MatrixBits:
    in_layer = _IN_LAYER.match(name)
    if in_layer is not None:
        return MatrixBits(block=f"layer {in_layer[1]}", matrix=_matrix_label(in_layer[2]), bits=bits)
    is_table = "embed" in name
    last = name.rsplit(".", 1)[-1].removesuffix("_embeddings")
    return MatrixBits(block="embeddings" if is_table else "head", matrix=last.replace("_", " "), bits=bits)


def _matrix_label(path: str) -> str:
    parts = [part for part in path.split(".") if part not in _SAYS_NOTHING]
    return " ".join(parts or [path]).replace("_", " ")
