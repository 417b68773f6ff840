"""Data that cannot be used, and the exact sentence that its owner reads.

The sentences are part of the interface: they end up in a run's status, where they are all that a user sees.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ireko_api.spec import Data, DataSource
from ireko_trainer.data import LabelSpace, label_space, load_data
from ireko_trainer.errors import UserError

SENTIMENT = LabelSpace(names=("negative", "positive"))
GOOD = '{"text": "a good film", "label": 1}\n'


@pytest.fixture(scope="module")
def tokenizer(minilm_dir: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(minilm_dir)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A file, how the manifest refers to it, and the sentence."""

    content: str | bytes | None
    """None: no file is written."""
    sentence: str
    """`{dir}` stands for the manifest's directory; a trailing `…` for a library's own words."""
    uri: str = "train.jsonl"
    source: dict[str, Any] = field(default_factory=dict)
    task: str = "text-classification"
    labels: LabelSpace = SENTIMENT


def parquet(rows: list[dict[str, object]], *, columns: list[str] | None = None) -> bytes:
    schema = None if columns is None else pa.schema([(column, pa.string()) for column in columns])
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink)
    return sink.getvalue().to_pybytes()


CASES = {
    "a missing file": Case(
        content=None,
        uri="data/train.jsonl",
        sentence="spec.data.train.uri: there is no file data/train.jsonl ({dir}/data/train.jsonl); relative paths "
        "start at the manifest's directory.",
    ),
    "a missing remote file": Case(
        content=None,
        uri="memory://bucket/none.parquet",
        sentence="spec.data.train.uri: there is no file memory://bucket/none.parquet; relative paths start at the "
        "manifest's directory.",
    ),
    "a directory": Case(
        content=None,
        uri="{dir}",
        source={"format": "jsonl"},
        sentence="spec.data.train.uri: {dir} is a directory; name the file in it.",
    ),
    "a driver that is not installed": Case(
        content=None,
        uri="gs://bucket/train.jsonl",
        sentence="spec.data.train.uri: gs://bucket/train.jsonl needs a driver for gs://; Please install gcsfs to "
        "access Google Storage.",
    ),
    "an unknown scheme": Case(
        content=None,
        uri="floppy://a/train.jsonl",
        sentence="spec.data.train.uri: floppy://a/train.jsonl has the unknown scheme floppy://; use a path, file://, "
        "s3://, or another scheme that fsspec knows.",
    ),
    "a suffix that says nothing": Case(
        content=GOOD,
        uri="train.data.gz",
        sentence="spec.data.train.uri: the format of train.data.gz cannot be told from the suffix '.data' (known: "
        ".jsonl, .ndjson, .json, .csv, .tsv, .parquet, .txt); set format to jsonl, csv, parquet or text.",
    ),
    "an empty file": Case(
        content="\n\n",
        sentence="spec.data.train.uri: train.jsonl ({dir}/train.jsonl) holds no rows; give a file with at least one "
        "text.",
    ),
    "a header alone": Case(
        content="text,label\n",
        uri="train.csv",
        sentence="spec.data.train.uri: train.csv ({dir}/train.csv) holds no rows; give a file with at least one text.",
    ),
    "a Parquet file without rows": Case(
        content=parquet([], columns=["text", "label"]),
        uri="train.parquet",
        sentence="spec.data.train.uri: train.parquet ({dir}/train.parquet) holds no rows; give a file with at least "
        "one text.",
    ),
    "a broken line": Case(
        content=GOOD + "\n" + '{"text": "cut\n' + GOOD,
        sentence="spec.data.train.uri: train.jsonl, line 3: not valid JSON (Unterminated string starting at at column "
        "10); every line must hold one JSON object.",
    ),
    "a JSON array": Case(
        content='[{"text": "a", "label": 0}]',
        uri="train.json",
        sentence="spec.data.train.uri: train.json, line 1: a JSON array; every line must hold one JSON object.",
    ),
    "a line in another encoding": Case(
        content=GOOD.encode() + '{"text": "schön", "label": 1}\n'.encode("latin-1"),
        sentence="spec.data.train.uri: train.jsonl, line 2: not UTF-8 (invalid start byte); save the file as UTF-8.",
    ),
    "a CSV row with too many fields": Case(
        content="text,label\ngood,1\nbad, very bad,0\n",
        uri="train.csv",
        sentence="spec.data.train.uri: train.csv, line 3: 3 fields where the header has 2; quote texts that contain "
        "the delimiter.",
    ),
    "a CSV quote that never ends": Case(
        content='text,label\ngood,1\n"bad,0\nfilm,1\n',
        uri="train.csv",
        sentence="spec.data.train.uri: train.csv, line 4: broken CSV (unexpected end of data); check the quotes.",
    ),
    "a CSV in another encoding": Case(
        content="text,label\nschön,1\n".encode("latin-1"),
        uri="train.csv",
        sentence="spec.data.train.uri: train.csv, line 2: not UTF-8 (invalid start byte); save the file as "
        "UTF-8.",
    ),
    "a file that is not compressed as its name says": Case(
        content=GOOD.encode(),
        uri="train.jsonl.gz",
        sentence="spec.data.train.uri: train.jsonl.gz ({dir}/train.jsonl.gz) cannot be read (Not a gzipped file "
        "(b'{\"')); check the file and your access to it.",
    ),
    "a compressed file that was cut off": Case(
        content=gzip.compress(GOOD.encode() * 1000)[:-20],
        uri="train.jsonl.gz",
        sentence="spec.data.train.uri: train.jsonl.gz ({dir}/train.jsonl.gz) cannot be read (Compressed file ended "
        "before the end-of-stream marker was reached); check the file and your access to it.",
    ),
    "something else than Parquet": Case(
        content=GOOD,
        uri="train.parquet",
        sentence="spec.data.train.uri: train.parquet is not a readable Parquet file (…",
    ),
    "a missing text column": Case(
        content=GOOD,
        source={"text_columns": ["sentence"]},
        sentence="spec.data.train.textColumns: train.jsonl has no column 'sentence'; its columns are 'text', 'label'.",
    ),
    "a missing label column": Case(
        content=parquet([{"text": "a", "stars": 1}]),
        uri="train.parquet",
        sentence="spec.data.train.labelColumn: train.parquet has no column 'label'; its columns are 'text', 'stars'.",
    ),
    "one column where a pair was asked for": Case(
        content=GOOD,
        source={"text_columns": ["text", "hypothesis"]},
        sentence="spec.data.train.textColumns: train.jsonl has no column 'hypothesis'; its columns are 'text', "
        "'label'.",
    ),
    "pairs from plain text": Case(
        content="a good film\n",
        uri="corpus.txt",
        source={"text_columns": ["text", "other"], "label_column": None},
        sentence="spec.data.train.textColumns: 'text', 'other' asks for text pairs, but corpus.txt is plain text with "
        "one text per line; name one column, or use jsonl, csv or parquet.",
    ),
    "labels from plain text": Case(
        content="a good film\n",
        uri="corpus.txt",
        sentence="spec.data.train.labelColumn: corpus.txt is plain text and has no column 'label'; remove "
        "labelColumn, or use jsonl, csv or parquet.",
    ),
    "a text that is null": Case(
        content=GOOD + '{"text": null, "label": 0}\n',
        sentence="spec.data.train.textColumns: train.jsonl, line 2 has no text in column 'text'; correct or remove "
        "the row.",
    ),
    "a text that is missing": Case(
        content=parquet([{"text": "a", "label": 0}, {"text": None, "label": 0}]),
        uri="train.parquet",
        sentence="spec.data.train.textColumns: train.parquet, row 2 has no text in column 'text'; correct or remove "
        "the row.",
    ),
    "a text that is a number": Case(
        content='{"text": 12, "label": 1}\n',
        sentence="spec.data.train.textColumns: train.jsonl, line 1 has 12, which is not a text, in column 'text'; "
        "correct or remove the row.",
    ),
    "an empty cell": Case(
        content="text,label\ngood,1\n,0\n",
        uri="train.csv",
        sentence="spec.data.train.textColumns: train.csv, line 3 has no text in column 'text'; correct or remove the "
        "row.",
    ),
    "labels missing in some rows": Case(
        content=GOOD + '{"text": "a"}\n' + '{"text": "b", "label": null}\n',
        sentence="spec.data.train.labelColumn: train.jsonl, line 2 has no label in column 'label' (2 of 3 "
        "rows have none); label every row, or remove labelColumn to use the texts alone.",
    ),
    "a label outside the range": Case(
        content=GOOD + '{"text": "a", "label": 2}\n',
        sentence="spec.data.train.labelColumn: train.jsonl, line 2 has the label 2, but there are 2 classes with the "
        "indices 0 to 1; correct the row, or list every class in spec.data.labels.",
    ),
    "the label of a hidden test set": Case(
        content='{"text": "a", "label": -1}\n',
        sentence="spec.data.train.labelColumn: train.jsonl, line 1 has the label -1 (-1 often marks the unlabelled "
        "test split of a benchmark), but there are 2 classes with the indices 0 to 1; correct the row, or list every "
        "class in spec.data.labels.",
    ),
    "a fraction as a class": Case(
        content='{"text": "a", "label": 0.5}\n',
        sentence="spec.data.train.labelColumn: train.jsonl, line 1 has the label 0.5, but there are 2 classes with "
        "the indices 0 to 1; correct the row, or list every class in spec.data.labels.",
    ),
    "a label that is no name": Case(
        content='{"text": "a", "label": "neutral"}\n',
        sentence="spec.data.train.labelColumn: train.jsonl, line 1 has the label 'neutral', which is none of the "
        "names 'negative', 'positive'; correct the row, or add the name to spec.data.labels.",
    ),
    "a name as a regression label": Case(
        content='{"text": "a", "label": "high"}\n',
        labels=LabelSpace(regression=True),
        sentence="spec.data.train.labelColumn: train.jsonl, line 1 has the label 'high'; regression needs finite "
        "numbers. Correct the row, or set spec.data.problemType to SingleLabel and list spec.data.labels.",
    ),
    "a regression label that is no number": Case(
        content='{"text": "a", "label": NaN}\n',
        labels=LabelSpace(regression=True),
        sentence="spec.data.train.labelColumn: train.jsonl, line 1 has the label nan; regression needs finite "
        "numbers. Correct the row, or set spec.data.problemType to SingleLabel and list spec.data.labels.",
    ),
    "labels of single texts for embeddings": Case(
        content=GOOD,
        task="feature-extraction",
        sentence="spec.data.train.labelColumn: task feature-extraction compares texts, so labels need two "
        "textColumns; name the second one, or remove labelColumn 'label'.",
    ),
    "texts longer than the teacher reads": Case(
        content=GOOD,
        source={"max_length": 1024},
        sentence="spec.data.train.maxLength: 1024 is more than the 512 tokens that the teacher reads; choose at most "
        "that.",
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_sentence_names_field_value_and_remedy(
    case: Case, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    uri = case.uri.format(dir=tmp_path)
    if case.content is not None:
        content = case.content if isinstance(case.content, bytes) else case.content.encode()
        (tmp_path / uri).write_bytes(content)
    settings = {"label_column": "label", "max_length": 64, **case.source}
    with pytest.raises(UserError) as caught:
        load_data(
            source=DataSource(uri=uri, **settings),
            base_dir=tmp_path,
            tokenizer=tokenizer,
            task=case.task,
            labels=case.labels,
            field="spec.data.train",
        )
    expected = case.sentence.replace("{dir}", str(tmp_path))
    if expected.endswith("…"):
        assert str(caught.value).startswith(expected.removesuffix("…"))
    else:
        assert str(caught.value) == expected


def test_a_bucket_that_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs", reason="needs the extra s3")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_MAX_ATTEMPTS"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    data = Data(train=DataSource(uri="s3://bucket/train.jsonl", label_column="label"))
    with pytest.raises(UserError) as caught:
        label_space(data=data, base_dir=tmp_path, head=None)
    assert str(caught.value) == (
        "spec.data.train.uri: s3://bucket/train.jsonl cannot be read (Could not connect to the endpoint URL: "
        '"http://127.0.0.1:9/bucket/train.jsonl"); check the file and your access to it.'
    )


@pytest.mark.parametrize(
    ("labels", "settings", "sentence"),
    [
        (
            ["good", "bad", "good"],
            {},
            "spec.data.labels: train.jsonl, line 1 has the label 'good', a name, and nothing says which classes there "
            "are; list them in the order of their indices (found: 'bad', 'good').",
        ),
        (
            [1, 2, 3],
            {},
            "spec.data.train.labelColumn: the labels in train.jsonl are 1, 2, 3; without spec.data.labels they must "
            "be the indices 0, 1, … of at least two classes, without gaps. List spec.data.labels, or set "
            "spec.data.problemType to Regression.",
        ),
        (
            [0, 0],
            {},
            "spec.data.train.labelColumn: the labels in train.jsonl are 0; without spec.data.labels they must be the "
            "indices 0, 1, … of at least two classes, without gaps. List spec.data.labels, or set "
            "spec.data.problemType to Regression.",
        ),
        (
            [0, 0.5],
            {"problem_type": "SingleLabel"},
            "spec.data.train.labelColumn: the labels in train.jsonl are 0, 0.5; without spec.data.labels they must be "
            "the indices 0, 1, … of at least two classes, without gaps. List spec.data.labels, or set "
            "spec.data.problemType to Regression.",
        ),
    ],
)
def test_labels_that_say_too_little_are_refused(
    labels: list[object], settings: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    lines = [json.dumps({"text": "a", "label": label}) for label in labels]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    data = Data(train=DataSource(uri="train.jsonl", label_column="label"), **settings)
    with pytest.raises(UserError) as caught:
        label_space(data=data, base_dir=tmp_path, head=None)
    assert str(caught.value) == sentence
