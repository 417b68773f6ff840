"""Multiple-choice questions from local files in the layouts that their authors publish.

Every benchmark becomes the same thing, a choice between continuations of contexts, worded as lm-evaluation-harness
words it. In most of them one context has several continuations; in WinoGrande several contexts have one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ireko_api.spec import MultipleChoice
from ireko_trainer.data.location import locate
from ireko_trainer.data.rows import detect_format, read_rows
from ireko_trainer.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Question:
    """Options to choose from: the one whose continuation is most likely behind its context is the answer."""

    contexts: tuple[str, ...]
    """One for all options, or one for each."""
    continuations: tuple[str, ...]
    """One for each option, or one for all."""
    gold: int
    """Index of the right option."""

    def __post_init__(self) -> None:
        options = max(len(self.contexts), len(self.continuations))
        if (
            min(len(self.contexts), len(self.continuations)) != 1
            or options < 2
            or not 0 <= self.gold < options
        ):
            raise ValueError(
                f"{len(self.contexts)} contexts, {len(self.continuations)} continuations, gold {self.gold}"
            )


def read_questions(*, source: MultipleChoice, base_dir: Path, field: str) -> list[Question]:
    """The first `source.limit` questions of a file.

    Raises:
        UserError: the file is missing, empty or broken, or a row is not laid out as its benchmark is.
    """
    location = locate(source.uri, base_dir=base_dir, field=f"{field}.uri")
    rows = read_rows(location, file_format=detect_format(location, declared="auto"))
    parse, layout = _BENCHMARKS[source.benchmark]
    questions = []
    for row in islice(rows, source.limit):
        try:
            questions.append(parse(row.values))
        except (KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
            raise UserError(
                f"{field}.uri: {source.uri}, line {row.place} is no question of {source.benchmark} "
                f"({type(error).__name__}: {error}); its rows are {layout}."
            ) from error
    if not questions:
        raise UserError(f"{field}.uri: {location.shown} holds no questions; give a file with at least one.")
    return questions


def questions_digest(questions: Sequence[Question]) -> str:
    """sha256 over everything that is asked."""
    content = json.dumps([asdict(question) for question in questions], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _arc(row: Mapping[str, Any]) -> Question:
    choices = row["question"]["choices"]
    return Question(
        contexts=(f"Question: {row['question']['stem']}\nAnswer:",),
        continuations=tuple(choice["text"] for choice in choices),
        gold=[choice["label"] for choice in choices].index(row["answerKey"]),
    )


def _hellaswag(row: Mapping[str, Any]) -> Question:
    return Question(contexts=(row["query"],), continuations=tuple(row["choices"]), gold=int(row["label"]))


def _mmlu(row: Mapping[str, Any]) -> Question:
    letters = ("A", "B", "C", "D")
    listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip(letters, row["choices"], strict=True))
    subject = row["subject"].replace("_", " ")
    return Question(
        contexts=(
            f"The following are multiple choice questions (with answers) about {subject}.\n\n"
            f"{row['question'].strip()}\n{listed}\nAnswer:",
        ),
        continuations=letters,
        gold=int(row["label"]),
    )


def _winogrande(row: Mapping[str, Any]) -> Question:
    before, after = row["sentence"].split("_", 1)
    return Question(
        contexts=(before + row["option1"], before + row["option2"]),
        continuations=(after.strip(),),
        gold=int(row["answer"]) - 1,
    )


_BENCHMARKS: dict[str, tuple[Callable[[Mapping[str, Any]], Question], str]] = {
    "arc_challenge": (_arc, "{question: {stem, choices: [{text, label}]}, answerKey}"),
    "hellaswag": (_hellaswag, "{query, choices, label}"),
    "mmlu": (_mmlu, "{subject, question, choices, label}"),
    "winogrande": (_winogrande, "{sentence, option1, option2, answer}"),
}
"""Benchmark -> how a row is read, and what one looks like."""
