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
from ireko_trainer.data import EncodedDataset, load_data, load_split
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


# --- the held-out part -------------------------------------------------------------------------------------

Split = Callable[..., tuple[EncodedDataset, EncodedDataset]]


@pytest.fixture
def split(tmp_path: Path) -> Split:
    def split_source(content: str, *, percent: float = 10, seed: int = 0, **source: Any) -> Any:
        (tmp_path / "text.txt").write_text(content)
        return load_split(
            source=DataSource(**{"uri": "text.txt", "max_length": 4, **source}),
            base_dir=tmp_path,
            tokenizer=make_tokenizer(bos_token=None, eos_token=None),
            task="text-generation",
            labels=None,
            field="spec.data.train",
            percent=percent,
            seed=seed,
        )

    return split_source


def tokens_of(data: EncodedDataset) -> set[int]:
    return {token for row in data.input_ids for token in row}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("percent", [10, 30, 50])
def test_no_document_is_on_both_sides_of_a_split(split: Split, percent: float, seed: int) -> None:
    # Every document has a letter of its own, and windows go across documents.
    lengths = dict(zip("abcdefgh", (5, 9, 30, 7, 14, 3, 11, 21), strict=True))
    rest, holdout = split(
        "".join(f"{letter} " * count + "\n" for letter, count in lengths.items()), percent=percent, seed=seed
    )
    assert len(rest)
    assert len(holdout)
    assert not tokens_of(rest) & tokens_of(holdout)
    whole = tokens_of(rest) | tokens_of(holdout)
    assert whole <= set(ids(" ".join(lengths)))


def test_the_held_out_share_is_of_tokens_and_the_same_for_a_seed(split: Split) -> None:
    content = "a b c d\n" * 50
    rest, holdout = split(content, percent=20)
    assert (len(rest), len(holdout)) == (40, 10)
    mixed = "".join(f"{letter} " * 8 + "\n" for letter in "abcdefgh" * 4)
    digests = [tuple(part.digest for part in split(mixed, seed=seed)) for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("seed", range(4))
def test_a_document_that_is_most_of_the_text_is_not_held_out(split: Split, seed: int) -> None:
    rest, holdout = split("a " * 400 + "\n" + "b c d e\n" * 25, seed=seed)
    assert ids("a")[0] in tokens_of(rest)
    assert 40 <= 4 * len(holdout) <= 60


def test_a_single_document_cannot_be_parted(split: Split) -> None:
    with pytest.raises(
        UserError,
        match=r"^spec\.data\.holdoutPercent: 10 % cannot be set aside from the 1 document\(s\) of text\.txt, .*"
        r"give spec\.data\.validation",
    ):
        split("a b c d e f g h " * 20)
