"""Module names as people read them in a picture."""

from __future__ import annotations

_SAYS_NOTHING = frozenset({"dense", "self", "weight"})


def block_label(name: str) -> str:
    """`encoder.layer.3` → `layer 3`; other names as they are."""
    last = name.rsplit(".", 1)[-1]
    return f"layer {last}" if last.isdigit() else name


def matrix_label(name: str) -> str:
    """`attention.self.query` → `attention query`; `word_embeddings` → `word`."""
    parts = [part for part in name.split(".") if part not in _SAYS_NOTHING] or [name]
    return " ".join(parts).removesuffix("_embeddings").replace("_", " ")
