"""From `helm install` to a loaded model and back to an empty cluster, on two nodes."""

from __future__ import annotations

import mlflow

from chain import small_run
from chain.place import Object, Place, Seen
from rig import product
from rig.processes import wait_until

SECOND = "second"
_SECONDS_TO_CLEAN_UP = 600


def test_from_helm_install_to_a_loaded_model_and_back(place: Place, undisturbed: Seen) -> None:
    assert "kubectl apply -f run.yaml" in undisturbed.notes
    _was_seen_on_the_way(undisturbed)
    _is_told_at_the_end(place, undisturbed)
    _is_registered_by_target(undisturbed)
    _predicts(place, undisturbed)
    _goes_on_while_its_operator_is_upgraded(place)
    _leaves_nothing_but_the_registry(place, undisturbed)


def _was_seen_on_the_way(run: Seen) -> None:
    assert sorted(run.nodes) == ["node-0", "node-1"]
    assert run.midway["phase"] == "Running"
    conditions = {item["type"]: item["status"] for item in run.midway["conditions"]}
    assert conditions["ClusterReady"] == "True"
    assert conditions["Succeeded"] == "Unknown"
    assert 0 < run.midway["progress"]["percent"] < 100
    assert run.midway["progress"]["totalSteps"] > 0
    assert run.row["NAME"] == run.name
    assert run.row["PHASE"] == "Running"
    assert run.row["STAGE"]
    assert run.row["PERCENT"].isdigit()


def _is_told_at_the_end(place: Place, run: Seen) -> None:
    assert run.status["phase"] == "Succeeded"
    assert {item["status"] for item in run.status["conditions"] if item["type"] != "ClusterReady"} == {"True"}
    assert [attempt["outcome"] for attempt in run.status["attempts"]] == ["Succeeded"]
    assert run.status["registered"] == "2/2"
    assert {member["target"] for member in run.status["members"]} == set(small_run.TARGETS)
    said = place.kubectl("get", "events", "--field-selector", f"involvedObject.name={run.name}", "-o", "name")
    assert said.split()
    described = place.kubectl("describe", "crun", run.name)
    assert "AttemptStarted" in described
    assert "Complete" in described


def _is_registered_by_target(run: Seen) -> None:
    versions, aliases = run.registered["versions"], run.registered["aliases"]
    assert set(aliases) == set(small_run.TARGETS)
    assert {target: versions[aliases[target]][0] for target in aliases} == {name: name for name in aliases}
    assert len(versions) == len(aliases)


def _predicts(place: Place, run: Seen) -> None:
    """As an edge device's updater would get it: by the alias of its kind."""
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(place.tracking_uri())
    try:
        for target in small_run.TARGETS:
            model = mlflow.pyfunc.load_model(f"models:/{run.name}@{target}")
            answers = model.predict(["a charming journey", "bleak"])
            assert len(answers) == 2
    finally:
        mlflow.set_tracking_uri(before)


def _goes_on_while_its_operator_is_upgraded(place: Place) -> None:
    """The smallest of runs, without workers: all of it happens in the head."""
    place.apply(small_run.manifest(SECOND, workers=0))
    place.wait_for(SECOND, "its training", lambda status: status.get("phase") == "Running")
    job, operator = _job_of(place, SECOND), _operator_of(place)
    place.install(workers=2, podAnnotations={"example.com/release": "second"})
    assert _operator_of(place) != operator
    assert place.run(SECOND)["status"]["phase"] == "Running"
    status = place.wait_for_success(SECOND)
    assert [attempt["rayJob"] for attempt in status["attempts"]] == [job["metadata"]["name"]]
    assert _job_of(place, SECOND)["metadata"]["uid"] == job["metadata"]["uid"]
    assert set(place.registered(SECOND)["aliases"]) == set(small_run.TARGETS)


def _job_of(place: Place, run: str) -> Object:
    (job,) = place.listed("rayjobs", f"ireko.dev/run={run}")
    return job


def _operator_of(place: Place) -> str:
    """The generation of the operator's pod that is rolled out."""
    return place.cluster.kubectl(
        "get", "replicasets", "-n", product.NAMESPACE, "-l", "app.kubernetes.io/name=ireko",
        "-o", "jsonpath={.items[?(@.status.readyReplicas==1)].metadata.name}",
    ).stdout  # fmt: skip


def _leaves_nothing_but_the_registry(place: Place, run: Seen) -> None:
    place.kubectl("delete", "crun", "--all", f"--timeout={_SECONDS_TO_CLEAN_UP}s", timeout=700)
    wait_until(
        lambda: not place.left_of_runs(),
        what="everything of the runs to go",
        timeout=_SECONDS_TO_CLEAN_UP,
        every=1,
    )
    kept = place.uninstall()
    assert "compressionruns.ireko.dev" in kept
    kubectl = place.cluster.kubectl
    mine = ("-l", "app.kubernetes.io/instance=ireko", "-o", "name")
    wait_until(
        lambda: not kubectl("get", "all,configmaps,secrets", "-n", product.NAMESPACE, *mine).stdout,
        what="everything of the release to go",
        timeout=_SECONDS_TO_CLEAN_UP,
        every=1,
    )
    assert not kubectl("get", "clusterroles,clusterrolebindings", *mine).stdout
    assert kubectl("get", "crd", "compressionruns.ireko.dev", "-o", "name").stdout
    assert place.registered(run.name) == run.registered
