"""Module names become labels that people know."""

from __future__ import annotations

import pytest

from ireko_trainer.report.naming import block_label, matrix_label


@pytest.mark.parametrize(
    ("module", "label"),
    [
        ("attention.self.query", "attention query"),
        ("attention.output.dense", "attention output"),
        ("output.dense", "output"),
        ("ffn.lin1", "ffn lin1"),
        ("word_embeddings", "word"),
        ("token_type_embeddings", "token type"),
        ("classifier", "classifier"),
        ("dense", "dense"),
    ],
)
def test_a_matrix_is_named_by_its_part(module: str, label: str) -> None:
    assert matrix_label(module) == label


def test_a_block_is_named_by_its_number() -> None:
    assert block_label("encoder.layer.7") == "layer 7"
    assert block_label("embeddings") == "embeddings"
