"""Multiple-choice questions as their authors publish them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ireko_api.spec import MultipleChoice
from ireko_trainer.data.questions import Question, questions_digest, read_questions
from ireko_trainer.errors import UserError

ROWS: dict[str, tuple[dict[str, Any], Question]] = {
    "arc_challenge": (
        {
            "question": {
                "stem": "What falls?",
                "choices": [{"text": "Rain", "label": "1"}, {"text": "Smoke", "label": "2"}],
            },
            "answerKey": "2",
        },
        Question(contexts=("Question: What falls?\nAnswer:",), continuations=("Rain", "Smoke"), gold=1),
    ),
    "hellaswag": (
        {"query": "Cooking: She stirs", "label": 0, "choices": ["the soup.", "the car."]},
        Question(contexts=("Cooking: She stirs",), continuations=("the soup.", "the car."), gold=0),
    ),
    "mmlu": (
        {"subject": "us_history", "question": "When? ", "choices": ["1", "2", "3", "4"], "label": 2},
        Question(
            contexts=(
                "The following are multiple choice questions (with answers) about us history.\n\n"
                "When?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:",
            ),
            continuations=("A", "B", "C", "D"),
            gold=2,
        ),
    ),
    "winogrande": (
        {"sentence": "Ann beat Bea so _ was glad.", "option1": "Ann", "option2": "Bea", "answer": "1"},
        Question(
            contexts=("Ann beat Bea so Ann", "Ann beat Bea so Bea"), continuations=("was glad.",), gold=0
        ),
    ),
}


def read(directory: Path, benchmark: str, rows: list[Any], **source: Any) -> list[Question]:
    (directory / "asked.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return read_questions(
        source=MultipleChoice(benchmark=benchmark, uri="asked.jsonl", **source),
        base_dir=directory,
        field="spec.evaluation.multipleChoice[0]",
    )


@pytest.mark.parametrize("benchmark", ROWS)
def test_a_question_is_worded_as_the_harness_words_it(benchmark: str, tmp_path: Path) -> None:
    row, question = ROWS[benchmark]
    assert read(tmp_path, benchmark, [row, row, row], limit=2) == [question, question]


@pytest.mark.parametrize("benchmark", ROWS)
def test_a_row_of_another_benchmark_is_refused_with_its_line(benchmark: str, tmp_path: Path) -> None:
    other = next(row for name, (row, _) in ROWS.items() if name != benchmark)
    with pytest.raises(UserError, match=rf"\[0\]\.uri: asked\.jsonl, line 2 is no question of {benchmark}"):
        read(tmp_path, benchmark, [ROWS[benchmark][0], other])


def test_an_answer_that_is_no_option_is_refused(tmp_path: Path) -> None:
    row = {**ROWS["hellaswag"][0], "label": 2}
    with pytest.raises(UserError, match="line 1 is no question of hellaswag"):
        read(tmp_path, "hellaswag", [row])


def test_the_digest_tells_answers_apart(tmp_path: Path) -> None:
    row = ROWS["hellaswag"][0]
    digests = {
        questions_digest(read(tmp_path, "hellaswag", [{**row, "label": label}])) for label in (0, 1, 0)
    }
    assert len(digests) == 2


@pytest.mark.parametrize(
    ("benchmark", "name"),
    [
        ("arc_challenge", "arc_challenge/ARC-Challenge-Test.jsonl"),
        ("hellaswag", "hellaswag/val_2k_sample.jsonl.gz"),
        ("mmlu", "mmlu/dev.jsonl"),
        ("winogrande", "winogrande/dev.jsonl"),
    ],
)
def test_the_published_files_can_be_read(benchmark: str, name: str, data_dir: Path) -> None:
    source = MultipleChoice(benchmark=benchmark, uri=str(data_dir / "eval" / name))
    questions = read_questions(source=source, base_dir=data_dir, field="spec.evaluation.multipleChoice[0]")
    assert len(questions) > 200
    assert {question.gold for question in questions} >= {0, 1}
