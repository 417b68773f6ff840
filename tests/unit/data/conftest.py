from __future__ import annotations

from pathlib import Path

import pytest
from transformers import BertTokenizer, PreTrainedTokenizerBase

WORDS = [
    "a",
    "bad",
    "film",
    "good",
    "is",
    "it",
    "music",
    "no",
    "not",
    "one",
    "the",
    "this",
    "two",
    "very",
    "was",
]


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    """A WordPiece tokenizer of twenty tokens: special tokens 0 to 4, then `WORDS`."""
    vocabulary = Path(tmp_path_factory.mktemp("tokenizer")) / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    return BertTokenizer(str(vocabulary), model_max_length=64)
