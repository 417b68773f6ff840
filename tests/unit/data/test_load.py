"""From files in every format to tokens and labels."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import PreTrainedTokenizerBase

from ireko_api.spec import Data, DataSource
from ireko_trainer.data import EncodedDataset, LabelSpace, label_space, load_data

ROWS = [
    {"text": "a good film", "other": "it is good", "label": 1},
    {"text": "bad, very bad", "other": "good", "label": 0},
    {"text": 'this was "not" good', "other": "it was bad", "label": 0},
]
SENTIMENT = LabelSpace(names=("negative", "positive"))

Load = Callable[..., EncodedDataset]


@pytest.fixture
def load(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> Load:
    def load_source(
        uri: str,
        *,
        task: str = "text-classification",
        labels: LabelSpace | None = SENTIMENT,
        **source: object,
    ) -> EncodedDataset:
        settings = {"uri": uri, "label_column": "label", "max_length": 32, **source}
        return load_data(
            source=DataSource(**settings),
            base_dir=tmp_path,
            tokenizer=tokenizer,
            task=task,
            labels=labels,
            field="spec.data.train",
        )

    return load_source


def json_lines(rows: list[dict[str, object]]) -> bytes:
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


def csv_text(delimiter: str) -> bytes:
    quoted = [
        delimiter.join(['"' + str(value).replace('"', '""') + '"' for value in row.values()]) for row in ROWS
    ]
    return "\r\n".join([delimiter.join(ROWS[0]), *quoted, ""]).encode()


def parquet(rows: list[dict[str, object]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


FILES = {
    "train.jsonl": json_lines(ROWS),
    "train.jsonl.gz": gzip.compress(json_lines(ROWS)),
    "train.json": json_lines(ROWS),
    "with-blank-lines-and-mark.jsonl": b"\xef\xbb\xbf" + json_lines(ROWS).replace(b"\n", b"\n\n"),
    "train.csv": csv_text(","),
    "train.csv.gz": gzip.compress(csv_text(",")),
    "train.tsv": csv_text("\t"),
    "train.parquet": parquet(ROWS),
}


@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_same_data(
    name: str, load: Load, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    (tmp_path / name).write_bytes(FILES[name])
    data = load(name)
    assert [list(row) for row in data.input_ids] == tokenizer([row["text"] for row in ROWS])["input_ids"]
    assert data.labels.tolist() == [1, 0, 0]


def test_plain_text_has_one_text_per_line_that_is_not_blank(
    load: Load, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    (tmp_path / "corpus.txt").write_text("a good film\n\n  this was bad  \n   \n")
    data = load("corpus.txt", task="feature-extraction", label_column=None, text_columns=["anything"])
    assert [list(row) for row in data.input_ids] == tokenizer(["a good film", "this was bad"])["input_ids"]


def test_a_declared_format_overrules_the_suffix(load: Load, tmp_path: Path) -> None:
    (tmp_path / "train.data").write_bytes(FILES["train.jsonl"])
    assert len(load("train.data", format="jsonl")) == 3


@pytest.mark.parametrize("form", ["{path}", "file://{path}", "train.jsonl", "file://train.jsonl"])
def test_paths_may_be_absolute_relative_and_with_scheme(form: str, load: Load, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(FILES["train.jsonl"])
    assert len(load(form.format(path=tmp_path / "train.jsonl"))) == 3


@pytest.mark.parametrize("name", ["train.jsonl.gz", "train.csv", "train.parquet"])
def test_other_file_systems_are_read_through_fsspec(name: str, load: Load) -> None:
    uri = f"memory://bucket/{name}"
    with fsspec.open(uri, "wb") as file:
        file.write(FILES[name])
    assert load(uri).labels.tolist() == [1, 0, 0]


def test_a_classification_pair_is_one_sequence_with_two_segments(load: Load, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(FILES["train.jsonl"])
    data = load("train.jsonl", text_columns=["text", "other"])
    assert len(data) == 3
    assert not data.pairs
    assert list(data.token_type_ids[0]) == [
        0,
        0,
        0,
        0,
        0,
        1,
        1,
        1,
        1,
    ]  # [CLS] a good film [SEP] it is good [SEP]


def test_an_embedding_pair_is_two_rows_with_one_label(load: Load, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(FILES["train.jsonl"])
    data = load("train.jsonl", text_columns=["text", "other"], task="feature-extraction", labels=None)
    assert data.pairs
    assert data.lengths.tolist() == [5, 5, 6, 3, 8, 5]
    assert data.labels.tolist() == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    assert data.labels.dtype == torch.float32


def test_long_texts_are_cut_at_the_maximum_length(load: Load, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(json_lines([{"text": "good " * 100, "label": 1}]))
    data = load("train.jsonl", max_length=10)
    assert data.lengths.tolist() == [10]
    assert data.input_ids[0][-1] == 3  # [SEP] stays


def test_a_limit_takes_the_first_rows_and_does_not_read_on(load: Load, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(FILES["train.jsonl"] + b"broken")
    assert load("train.jsonl", limit=2).labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (["negative", "positive"], [0, 1]),
        ([1, 0], [1, 0]),
        (["1", "0"], [1, 0]),
        ([True, False], [1, 0]),
        ([1.0, 0.0], [1, 0]),
    ],
)
def test_labels_are_names_or_indices(
    raw: list[object], expected: list[int], load: Load, tmp_path: Path
) -> None:
    (tmp_path / "train.jsonl").write_bytes(json_lines([{"text": "a film", "label": label} for label in raw]))
    labels = load("train.jsonl").labels
    assert labels.tolist() == expected
    assert labels.dtype == torch.int64


def test_a_text_that_reads_like_a_missing_value_stays_a_text(
    load: Load, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    (tmp_path / "train.csv").write_text("text,label\nNA,1\nnull,0\nnan,1\n")
    assert len(load("train.csv")) == 3


def test_regression_labels_are_numbers(load: Load, tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\na film,4.75\ngood,0\n")
    labels = load("train.csv", labels=LabelSpace(regression=True)).labels
    assert labels.tolist() == [4.75, 0.0]
    assert labels.dtype == torch.float32


HEAD = LabelSpace(names=("bad", "fine"))


@pytest.mark.parametrize(
    ("raw", "settings", "head", "expected"),
    [
        ([0, 1, 2, 1], {}, None, LabelSpace(names=("0", "1", "2"))),
        (["1", "0"], {}, None, LabelSpace(names=("0", "1"))),
        ([0.0, 2.5], {}, None, LabelSpace(regression=True)),
        ([0.0, 1.0], {}, None, LabelSpace(names=("0", "1"))),
        ([0, 1], {"problem_type": "Regression"}, HEAD, LabelSpace(regression=True)),
        (["no", "yes"], {"labels": ["no", "yes"]}, HEAD, LabelSpace(names=("no", "yes"))),
        (["fine", "bad"], {}, HEAD, HEAD),
        ([3, 4], {}, LabelSpace(regression=True), LabelSpace(regression=True)),
        ([0, 1], {"problem_type": "SingleLabel"}, LabelSpace(regression=True), LabelSpace(names=("0", "1"))),
    ],
)
def test_labels_mean_what_the_manifest_then_the_head_then_the_data_says(
    raw: list[object],
    settings: dict[str, object],
    head: LabelSpace | None,
    expected: LabelSpace,
    tmp_path: Path,
) -> None:
    (tmp_path / "train.jsonl").write_bytes(json_lines([{"text": "a", "label": label} for label in raw]))
    data = Data(train=DataSource(uri="train.jsonl", label_column="label"), **settings)
    assert label_space(data=data, base_dir=tmp_path, head=head) == expected


def test_nothing_says_what_absent_labels_mean(tmp_path: Path) -> None:
    data = Data(train=DataSource(uri="train.jsonl"))
    assert label_space(data=data, base_dir=tmp_path, head=None) is None


def test_real_sentiment_data_is_read_whole(data_dir: Path, load: Load) -> None:
    uri = str(data_dir / "glue" / "sst2" / "dev.jsonl")
    data = load(uri, text_columns=["sentence"], max_length=64)
    assert len(data) == 872
    assert data.labels.sum().item() == 444


def test_real_similarity_data_is_read_as_pairs(data_dir: Path, load: Load) -> None:
    uri = str(data_dir / "glue" / "stsb" / "dev.jsonl")
    data = load(
        uri,
        task="feature-extraction",
        text_columns=["sentence1", "sentence2"],
        label_column="score",
        max_length=64,
        labels=None,
    )
    assert len(data) == 3000
    assert data.labels.min() == 0.0
    assert data.labels.max() == 5.0
