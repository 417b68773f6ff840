"""Running text: documents of every kind laid end to end and cut into windows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ireko_api.spec import DataSource
from ireko_trainer.data import EncodedDataset, load_data
from ireko_trainer.errors import UserError

WORDS = ["<s>", "</s>", "<unk>", "user", "bot", *"abcdefgh"]
BOS, EOS = 0, 1
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.role + ' ' + m.content + ' ' }}{% endfor %}"

Load = Callable[..., EncodedDataset]


def ids(text: str) -> list[int]:
    return [WORDS.index(word) for word in text.split()]


def make_tokenizer(**options: Any) -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    settings = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "model_max_length": 64}
    return PreTrainedTokenizerFast(tokenizer_object=words, **{**settings, **options})


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load_source(content: str, *, name: str = "text.txt", tokenizer: Any = None, **source: Any) -> Any:
        (tmp_path / name).write_text(content)
        return load_data(
            source=DataSource(**{"uri": name, "max_length": 4, **source}),
            base_dir=tmp_path,
            tokenizer=tokenizer or make_tokenizer(),
            task="text-generation",
            labels=None,
            field="spec.data.calibration",
        )

    return load_source


def rows(data: EncodedDataset) -> list[list[int]]:
    return [list(row) for row in data.input_ids]


def test_documents_begin_with_bos_and_windows_go_across_them(load: Load) -> None:
    data = load("a b c\n\nd e f g\nh\n")
    # One document per line; "<s> h" is no whole window.
    assert rows(data) == [ids("<s> a b c"), ids("<s> d e f")]
    assert data.labels is None
    assert data.batch([0, 1])["attention_mask"].all()


def test_without_bos_documents_end_with_eos(load: Load) -> None:
    data = load("a b c\nd e f\n", tokenizer=make_tokenizer(bos_token=None))
    assert rows(data) == [ids("a b c </s>"), ids("d e f </s>")]


def test_documents_of_many_lines_are_parted_by_a_line_of_their_own(load: Load) -> None:
    data = load("a b\n\nc\n<|endoftext|>\nd\ne f\n<|endoftext|>\n")
    assert rows(data) == [ids("<s> a b c"), ids("<s> d e f")]


def test_json_lines_name_their_column(load: Load) -> None:
    content = "".join(json.dumps({"story": text}) + "\n" for text in ("a b c", "d e f"))
    assert rows(load(content, name="a.jsonl", text_columns=["story"], limit=1)) == [ids("<s> a b c")]
    with pytest.raises(UserError, match=r"calibration\.textColumns: a\.jsonl has no column 'text'.*'story'"):
        load(content, name="a.jsonl")


CONVERSATION = [{"role": "user", "content": "a"}, {"role": "bot", "content": "b c"}]


def test_a_conversation_is_written_by_the_tokenizers_template(load: Load) -> None:
    content = json.dumps({"messages": CONVERSATION}) + "\n"
    tokenizer = make_tokenizer(chat_template=TEMPLATE)
    data = load(content, name="a.jsonl", text_columns=["messages"], max_length=6, tokenizer=tokenizer)
    # The template has written the BOS; it is not written twice.
    assert rows(data) == [ids("<s> user a bot b c")]


@pytest.mark.parametrize(
    ("value", "template", "message"),
    [
        (CONVERSATION, None, r"line 1 has a conversation .* no chat template; give plain texts"),
        (CONVERSATION, "{{ raise_exception('roles differ') }}", r"template refuses \(roles differ\)"),
        ([{"role": "user"}], TEMPLATE, r"line 1 has .*not a text.* role and content"),
        (None, TEMPLATE, r"line 1 has no text in column 'text'"),
        (7, TEMPLATE, r"line 1 has 7, which is not a text"),
    ],
)
def test_what_is_neither_text_nor_conversation_is_refused_with_its_line(
    load: Load, value: object, template: str | None, message: str
) -> None:
    content = json.dumps({"text": value}) + "\n"
    with pytest.raises(UserError, match=message):
        load(content, name="a.jsonl", tokenizer=make_tokenizer(chat_template=template))


def test_text_shorter_than_a_window_is_refused_with_what_would_do(load: Load) -> None:
    with pytest.raises(
        UserError,
        match=r"^spec\.data\.calibration\.uri: text\.txt holds 3 tokens, fewer than one window of maxLength 4; .*"
        r"calibration\.maxLength to 3 or less",
    ):
        load("a b\n")


def test_windows_longer_than_the_teacher_reads_are_refused(load: Load) -> None:
    with pytest.raises(UserError, match=r"calibration\.maxLength: 65 is more than the 64 tokens"):
        load("a b\n", max_length=65)
