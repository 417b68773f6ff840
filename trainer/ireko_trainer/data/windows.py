"""Running text for language models: documents one after the other, cut into windows of one length.

Padding every document to the longest would waste most of the arithmetic, and cutting each would throw most of the
text away. So documents are laid end to end and cut every `maxLength` tokens. A document begins with the tokenizer's
BOS, or, where it has none, ends with its EOS, so that a model can tell where one ends; what is left behind the last
whole window is dropped.
"""

from __future__ import annotations

from array import array
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ireko_api.spec import DataSource
from ireko_trainer.data.documents import Documents, read_documents
from ireko_trainer.data.encoded import EncodedDataset
from ireko_trainer.errors import UserError

_CHUNK = 512
"""Documents per call of the tokenizer."""


def load_windows(
    *, source: DataSource, base_dir: Path, tokenizer: PreTrainedTokenizerBase, field: str
) -> EncodedDataset:
    """Read one data source as windows of `source.max_length` tokens each, without labels.

    Args:
        source: `spec.data.train` or one of its siblings.
        base_dir: where relative paths start.
        tokenizer: the teacher's.
        field: path of `source` in the manifest, such as `spec.data.train`, for error texts.

    Raises:
        UserError: the source cannot be used, or holds less text than one window.
    """
    length = source.max_length
    if length > tokenizer.model_max_length:
        raise UserError(
            f"{field}.maxLength: {length} is more than the {tokenizer.model_max_length} tokens that the teacher "
            "reads; choose at most that."
        )
    documents = read_documents(source=source, base_dir=base_dir, tokenizer=tokenizer, field=field)
    tokens = running_tokens(documents, tokenizer=tokenizer)
    count = len(tokens) // length
    if count == 0:
        raise UserError(
            f"{field}.uri: {documents.uri} holds {len(tokens)} tokens, fewer than one window of maxLength {length}; "
            f"give more text, or set {field}.maxLength to {len(tokens)} or less."
        )
    return EncodedDataset(
        input_ids=[tokens[start : start + length] for start in range(0, count * length, length)]
    )


def running_tokens(documents: Documents, *, tokenizer: PreTrainedTokenizerBase) -> array[int]:
    """All documents one after the other, with what parts them."""
    tokens: array[int] = array("i")
    for start in range(0, len(documents.texts), _CHUNK):
        encoded = tokenizer(
            documents.texts[start : start + _CHUNK],
            add_special_tokens=False,
            return_attention_mask=False,
            verbose=False,
        )
        for ids in encoded["input_ids"]:
            tokens.extend(_parted(ids, tokenizer=tokenizer))
    return tokens


def _parted(ids: list[int], *, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """A document with its mark; a chat template may have written it already."""
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    if begin is not None:
        return ids if ids[:1] == [begin] else [begin, *ids]
    if end is not None:
        return ids if ids[-1:] == [end] else [*ids, end]
    return ids
