"""Module names become rows and columns that people know."""

from __future__ import annotations

import pytest

from ireko_trainer.report.naming import block_label, matrix_bits


@pytest.mark.parametrize(
    ("module", "block", "matrix"),
    [
        ("bert.encoder.layer.3.attention.self.query", "layer 3", "attention query"),
        ("encoder.layer.0.attention.output.dense", "layer 0", "attention output"),
        ("encoder.layer.11.output.dense", "layer 11", "output"),
        ("distilbert.transformer.layer.2.ffn.lin1", "layer 2", "ffn lin1"),
        ("bert.embeddings.word_embeddings", "embeddings", "word"),
        ("classifier", "head", "classifier"),
        ("classifier.out_proj", "head", "out proj"),
    ],
)
def test_a_matrix_is_named_by_its_layer_and_its_part(module: str, block: str, matrix: str) -> None:
    (entry,) = matrix_bits({module: 4})
    assert (entry.block, entry.matrix, entry.bits) == (block, matrix, 4)


def test_a_block_is_named_by_its_number() -> None:
    assert block_label("encoder.layer.7") == "layer 7"
    assert block_label("embeddings") == "embeddings"
