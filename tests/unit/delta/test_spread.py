"""Decompositions that run elsewhere, in any order and from copies, are those that run here."""

from __future__ import annotations

import pickle
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch

from ireko_trainer.delta import (
    DeltaOptions,
    Metrics,
    apply_plan,
    collect_moments,
    measured_modules,
    one_by_one,
    plan_deltas,
)

TWO_MODES = [{"reduction": 0.3}, {"reduction": 0.3, "sharing": "Basis", "initialization": "Whitened"}]


def elsewhere(function: Callable[[Any], Any], jobs: Iterable[Any]) -> Iterator[Any]:
    """The last job first, with nothing but bytes on the way there and back."""
    sent = [pickle.dumps((function, job)) for job in jobs]
    answers = []
    for message in reversed(sent):
        called, job = pickle.loads(message)
        answers.append(pickle.dumps(called(job)))
    return (pickle.loads(answer) for answer in reversed(answers))


def factored(build, texts, spread, **options):
    model = build("llama", likeness=0.9)
    wanted = DeltaOptions(**options)
    moments = collect_moments(
        model=model, batches=texts, modules=measured_modules(model, wanted), kind="distribution"
    )
    told: list[tuple[int, int]] = []
    plan = plan_deltas(
        model=model,
        moments=moments,
        options=wanted,
        spread=spread,
        on_decomposed=lambda done, total: told.append((done, total)),
    )
    metrics = Metrics(model=model, moments=moments, initialization=wanted.initialization)
    apply_plan(model=model, plan=plan, metrics=metrics, spread=spread)
    return plan, model.state_dict(), told


@pytest.mark.parametrize("options", TWO_MODES, ids=["Delta", "Basis"])
def test_decompositions_made_elsewhere_change_no_bit(build, texts, options: dict[str, Any]) -> None:
    plan, weights, _ = factored(build, texts, one_by_one, **options)
    there, weights_there, _ = factored(build, texts, elsewhere, **options)
    assert there == plan
    assert list(weights_there) == list(weights)
    assert all(torch.equal(weights_there[name], weights[name]) for name in weights)


def test_every_decomposition_is_counted(build, texts) -> None:
    _, _, told = factored(build, texts, one_by_one, reduction=0.3)
    total = told[0][1]
    assert told == [(done, total) for done in range(1, total + 1)]
    # Seven matrices in each of four blocks, alone, with their likes, and behind every other block.
    assert total == 4 * (7 + 4 + 1) + 4 * 3 * 7


def test_jobs_are_made_one_at_a_time(build, texts) -> None:
    alive: list[int] = []

    def watched(function: Callable[[Any], Any], jobs: Iterable[Any]) -> Iterator[Any]:
        made: list[weakref.ref[Any]] = []
        for job in jobs:
            made.append(weakref.ref(job))
            alive.append(sum(one() is not None for one in made))
            yield function(job)

    factored(build, texts, watched, reduction=0.3)
    assert set(alive) == {1}
