"""One search of a real MLflow for all runs that are followed."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import Any

import pytest
from mlflow import MlflowClient

from ireko_api.handoff import TAG_PROGRESS, TAG_SPEC_DIGEST, TAG_UID, Progress
from ireko_operator.kube.keys import Key
from ireko_operator.telemetry import NoTelemetry
from ireko_operator.tracking import connect
from ireko_operator.tracking_poll import Followed, TrackingPoll


class Counting(NoTelemetry):
    def __init__(self) -> None:
        self.tracked: Counter[str] = Counter()

    def tracking(self, result: str) -> None:
        self.tracked[result] += 1


class Store:
    """Trainers that say how far they are, and a poll that counts its calls."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.client = connect(uri)
        self.experiment = self.client.create_experiment("ireko")
        self.runs: dict[str, str] = {}
        self.woken: list[Key] = []
        self.telemetry = Counting()
        self.searches = 0
        self.poll = TrackingPoll(wake=self.woken.append, connect=self._connect, telemetry=self.telemetry)

    def _connect(self, uri: str) -> MlflowClient:
        client = connect(uri)
        search = client.search_runs

        def counted(*arguments: Any, **named: Any) -> Any:
            self.searches += 1
            return search(*arguments, **named)

        client.search_runs = counted
        return client

    def progress(self, uid: str, percent: int) -> None:
        if uid not in self.runs:
            tags = {TAG_UID: uid, TAG_SPEC_DIGEST: "d"}
            self.runs[uid] = self.client.create_run(self.experiment, tags=tags).info.run_id
        said = Progress(
            stage="widths",
            stage_index=0,
            stage_count=1,
            step=percent,
            total_steps=100,
            percent=percent,
            updated_at=datetime.now(UTC),
        )
        self.client.set_tag(self.runs[uid], TAG_PROGRESS, said.to_json())

    def follow(self, uid: str, *, uri: str | None = None) -> None:
        run = Followed(
            key=("models", uid),
            uid=uid,
            spec_digest="d",
            tracking_uri=uri or self.uri,
            experiment="ireko",
        )
        self.poll.follow(run)

    def percent(self, uid: str) -> int | None:
        run = self.poll.latest(uid).run
        return run.progress.percent if run is not None and run.progress is not None else None


@pytest.fixture
def store(mlflow_sqlite_uri: str) -> Store:
    return Store(mlflow_sqlite_uri)


def test_many_runs_take_one_search(store: Store) -> None:
    for number in range(5):
        store.progress(f"u-{number}", percent=number)
        store.follow(f"u-{number}")
    store.poll.poll()
    assert store.searches == 1
    assert [store.percent(f"u-{number}") for number in range(5)] == [0, 1, 2, 3, 4]
    assert sorted(store.woken) == [("models", f"u-{number}") for number in range(5)]


def test_a_run_is_woken_only_when_something_new_is_known_of_it(store: Store) -> None:
    for uid in ("u-1", "u-2"):
        store.progress(uid, percent=1)
        store.follow(uid)
    store.poll.poll()
    store.woken.clear()
    store.progress("u-2", percent=2)
    store.poll.poll()
    store.poll.poll()
    assert store.woken == [("models", "u-2")]


def test_nobody_is_asked_while_no_run_is_followed(store: Store) -> None:
    store.progress("u-1", percent=1)
    store.poll.poll()
    store.follow("u-1")
    store.poll.forget("u-1")
    store.poll.poll()
    assert store.searches == 0
    assert store.telemetry.tracked == {}


def test_what_a_run_last_said_stands_when_it_has_ended(store: Store) -> None:
    store.progress("u-1", percent=70)
    store.follow("u-1")
    store.poll.poll()
    store.client.set_terminated(store.runs["u-1"])
    store.poll.poll()
    assert store.percent("u-1") == 70


def test_one_run_with_a_broken_tag_hides_none_of_the_others(store: Store) -> None:
    for uid in ("u-1", "u-2"):
        store.progress(uid, percent=3)
        store.follow(uid)
    store.client.set_tag(store.runs["u-1"], TAG_PROGRESS, "{")
    store.poll.poll()
    assert store.percent("u-1") is None
    assert store.percent("u-2") == 3


def test_an_outage_is_known_per_server_and_ends(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away = "http://127.0.0.1:9"
    store.progress("u-1", percent=3)
    store.follow("u-1")
    store.follow("u-2", uri=away)
    store.poll.poll()
    assert store.poll.latest("u-1").outage is None
    outage = store.poll.latest("u-2").outage
    assert outage is not None
    assert away in outage.message
    assert ("models", "u-2") in store.woken
    store.woken.clear()
    store.poll.poll()
    assert store.woken == []
    assert store.telemetry.tracked == {"ok": 2, "unreachable": 2}
    store.poll.forget("u-2")
    store.progress("u-2", percent=5)
    store.follow("u-2")
    store.poll.poll()
    assert store.poll.latest("u-2").outage is None
    assert store.percent("u-2") == 5
