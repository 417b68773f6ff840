"""Every problem of a manifest is told at once, each by its place, its value and what would be right."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ireko_api.validation import InvalidManifestError, Problem, find_problems, parse

Manifest = dict[str, Any]
ManifestWith = Callable[[dict[str, Any]], Manifest]

A_QUANTITY = 'a Kubernetes quantity: a number with an optional suffix, e.g. "500m", "2", "1.5Gi" or "800M"'
A_NAME = "a name of lower-case letters, digits and hyphens that begins and ends with a letter or digit"
AN_OBJECT = "the name of an object: lower-case letters, digits, hyphens and dots"
QUOTES = "put it in quotes to make it a string"


def lines(manifest: object) -> list[str]:
    return [str(problem) for problem in find_problems(manifest)]


# Each row: where below spec, what YAML is written there, what is said about it.
FORM = [
    ("pipeline.mlfs.rnk", "8", 'unknown field; did you mean "rank"?'),
    ("pipeline.mlfs.search_space", "{}", 'unknown field; did you mean "searchSpace"?'),
    ("pipeline.mlfs.RANK", "8", 'unknown field; did you mean "rank"?'),
    ("pipeline.mlfs.gradientScaling.x", "8", "unknown field; known here: gamma"),
    ("pipeline.mlfs.searchSpace.heads", "[1]", "unknown field; known here: hidden, intermediate and layers"),
    ("pipeline.mlfs.rank", '"8"', 'expected an integer from 1 to 1024, got the string "8"'),
    ("pipeline.mlfs.rank", "8.5", "expected an integer from 1 to 1024, got the number 8.5"),
    ("pipeline.mlfs.rank", "yes", "expected an integer from 1 to 1024, got the boolean true"),
    ("pipeline.mlfs.rank", "0", "0 is not allowed; expected an integer from 1 to 1024"),
    ("pipeline.mlfs.rank", "[8]", "expected an integer from 1 to 1024, got a list of 1"),
    ("pipeline.mlfs.loraAlpha", "abc", 'expected a number above 0 and at most 4096, got the string "abc"'),
    ("pipeline.mlfs.loraAlpha", "true", "expected a number above 0 and at most 4096, got the boolean true"),
    ("pipeline.mlfs.loraAlpha", "0", "0 is not allowed; expected a number above 0 and at most 4096"),
    ("pipeline.mlfs.distillation.alpha", ".nan", "NaN is not allowed; expected a number from 0 to 1"),
    ("pipeline.mlfs.distillation.beta", ".inf", "Infinity is not allowed; expected a number from 0 to 10"),
    (
        "pipeline.mlfs.distillation",
        "Frozen",
        "expected a mapping with fields such as teacher, alpha, beta and temperature,"
        ' got the string "Frozen"',
    ),
    ("pipeline.mlfs.searchSpace.layers", "[]", "an empty list is not allowed; expected a list of 1 to 8"),
    ("pipeline.mlfs.searchSpace.layers", "1", "expected a list of 1 to 8, got the number 1"),
    ("pipeline.quantization.bits", "[2, 7]", "7 is not allowed; expected one of 2, 3, 4, 5, 6 or 8"),
    (
        "pipeline.quantization.method",
        "Nearest",
        '"Nearest" is not allowed; expected one of "RTN", "GPTQ" or "GPTAQ"',
    ),
    (
        "teacher.dtype",
        "fp16",
        '"fp16" is not allowed; expected one of "auto", "float32", "bfloat16" or "float16";'
        ' did you mean "float16"?',
    ),
    ("teacher.dtype", "16", '16 is not allowed; expected one of "auto", "float32", "bfloat16" or "float16"'),
    ("teacher.trustRemoteCode", '"yes"', 'expected true or false, got the string "yes"'),
    (
        "teacher.model",
        '" x"',
        '" x" is not allowed; expected one line without spaces around it, of 1 to 1024 characters',
    ),
    (
        "data.train.uri",
        "2024-01-31",
        "expected one line without spaces around it, of 1 to 1024 characters,"
        f" got the date 2024-01-31; {QUOTES}",
    ),
    ("data.labels", "[no, yes]", f"expected a string of 1 to 64 characters, got the boolean false; {QUOTES}"),
    ("data.train.textColumns", "text", 'expected a list of 1 to 2, got the string "text"'),
    (
        "deviceTargets.0.name",
        "Gateway",
        f'"Gateway" is not allowed; expected {A_NAME}, of 1 to 63 characters',
    ),
    (
        "deviceTargets.0.constraints.maxSizeMiB",
        "-3",
        "-3 is not allowed; expected a number from 0.1 to 1048576",
    ),
    ("deviceTargets.0.constraints.maxSizeMib", "3", 'unknown field; did you mean "maxSizeMiB"?'),
    ("deviceTargets.0.constraints", "{}", "is required: a number from 0.1 to 1048576"),
    ("compute.resourcesPerWorker.memory", "2 GB", f'"2 GB" is not {A_QUANTITY}'),
    ("compute.resourcesPerWorker.cpu", "[1]", f"expected {A_QUANTITY}, got a list of 1"),
    ("suspend", '"on"', 'expected true or false, got the string "on"'),
    ("compute.maxAttempts", "0", "0 is not allowed; expected an integer from 1 to 32"),
    ("compute.pendingDeadlineSeconds", "0", "0 is not allowed; expected an integer from 1 to 2592000"),
    ("compute.ttlSecondsAfterFinished", "-1", "-1 is not allowed; expected an integer from 0 to 2147483647"),
    ("compute.maxMemory", "lots", f'"lots" is not {A_QUANTITY}'),
    ("compute.image", '"a b"', '"a b" is not allowed; expected one word, of 1 to 512 characters'),
    (
        "compute.serviceAccountName",
        "../admin",
        f'"../admin" is not allowed; expected {AN_OBJECT}, of 1 to 253 characters',
    ),
    (
        "compute.imagePullSecrets",
        "[kube-system/x]",
        f'"kube-system/x" is not allowed; expected {AN_OBJECT}, of 1 to 253 characters',
    ),
    (
        "compute.storage.persistentVolumeClaim",
        "{claimName: a, subPath: a/../../b}",
        '"a/../../b" is not allowed; expected a relative path whose parts do not begin with a dot,'
        " of 1 to 512 characters",
    ),
    (
        "compute.storage.objectStore.uri",
        "file:///etc",
        '"file:///etc" is not allowed; expected the URI of a bucket such as `s3://bucket/prefix`,'
        " of 1 to 1024 characters",
    ),
    (
        "compute.tolerations",
        "[{operator: Exists, effect: NoRun}]",
        '"NoRun" is not allowed; expected one of "NoSchedule", "PreferNoSchedule" or "NoExecute"',
    ),
    ("compute.podTemplate.spec.affinity", "[]", "expected a mapping, got an empty list"),
    ("compute.podTemplate.spec.volume", "[]", 'unknown field; did you mean "volumes"?'),
    (
        "registry.modelName",
        "a/b",
        '"a/b" is not allowed;'
        " expected a name without slashes, colons, at signs and spaces around it, of 1 to 256 characters",
    ),
]

# Where the sentence is about a part of what was written.
DEEPER = {
    "data.labels": "spec.data.labels[0]",
    "pipeline.quantization.bits": "spec.pipeline.quantization.bits[1]",
    "compute.imagePullSecrets": "spec.compute.imagePullSecrets[0]",
    "compute.storage.persistentVolumeClaim": "spec.compute.storage.persistentVolumeClaim.subPath",
    "compute.tolerations": "spec.compute.tolerations[0].effect",
}


@pytest.mark.parametrize(("path", "text", "sentence"), FORM, ids=[f"{path}={text}" for path, text, _ in FORM])
def test_a_malformed_field_is_told_in_one_sentence(
    manifest_with: ManifestWith, path: str, text: str, sentence: str
) -> None:
    problems = find_problems(manifest_with({path: yaml.safe_load(text)}))
    place = DEEPER.get(path, "spec." + path.replace(".0", "[0]"))
    place += ".maxSizeMiB" if text == "{}" and path.endswith("constraints") else ""
    assert Problem(place, sentence) in problems
    others = [problem for problem in problems if problem.path.split("[")[0] != place.split("[")[0]]
    assert others == []


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ("", ["expected a CompressionRun manifest, a mapping, got nothing"]),
        ("- a", ["expected a CompressionRun manifest, a mapping, got a list of 1"]),
        ("hello", ['expected a CompressionRun manifest, a mapping, got the string "hello"']),
        ("{}", ['apiVersion: is required: "ireko.dev/v1alpha1"', 'kind: is required: "CompressionRun"']),
        (
            "{apiVersion: v1, kind: Pod, spec: {a: b}}",
            [
                'apiVersion: "v1" is not known here; expected "ireko.dev/v1alpha1"',
                'kind: "Pod" is not known here; expected "CompressionRun"',
            ],
        ),
        (
            "{apiVersion: ireko.dev/v1alpha1, kind: CompressionRun}",
            [
                "metadata: is required:"
                " a mapping with fields such as name, namespace, labels and annotations",
                "spec: is required: a mapping with fields such as seed, teacher, data and pipeline",
            ],
        ),
    ],
)
def test_a_document_that_is_no_run_is_told_so(document: str, expected: list[str]) -> None:
    assert lines(yaml.safe_load(document)) == expected


def test_a_key_that_yaml_took_for_something_else_is_told(manifest: Manifest) -> None:
    manifest["metadata"]["labels"] = {1: "a"}
    manifest["spec"]["data"][True] = "a"
    assert lines(manifest) == [
        f"metadata.labels.1: expected a string, got the number 1; {QUOTES}",
        "spec.data.True: unknown field;"
        " known here: labels, problemType, train, validation, holdoutPercent and calibration",
    ]


def test_a_name_is_short_enough_for_the_names_that_are_made_from_it(manifest: Manifest) -> None:
    manifest["metadata"]["name"] = "a" * 41
    (problem,) = find_problems(manifest)
    assert problem.path == "metadata.name"
    assert problem.message.endswith("of 1 to 40 characters")


def test_a_pod_template_that_is_too_large_is_told_by_its_size(manifest_with: ManifestWith) -> None:
    template = {"spec": {"affinity": {"x": "x" * 70_000}}}
    (problem,) = find_problems(manifest_with({"compute.podTemplate": template}))
    assert problem.path == "spec.compute.podTemplate.spec.affinity"
    assert re.fullmatch(r"is 7\d{4} bytes as JSON; at most 65536 are allowed", problem.message)


def test_a_long_value_is_cut_in_the_sentence(manifest_with: ManifestWith) -> None:
    (problem,) = find_problems(manifest_with({"registry.experiment": "x" * 300}))
    assert re.fullmatch(r'"x{50,60}…" is not allowed; .*', problem.message)


# --- all at once -------------------------------------------------------------------------------


def test_rules_of_several_objects_are_told_together(manifest_with: ManifestWith) -> None:
    edits = {
        "teacher.revision": "x",
        "data.holdoutPercent": 0,
        "evaluation.metric": "neighbours",
        "pipeline": {},
    }
    assert [problem.path for problem in find_problems(manifest_with(edits))] == [
        "spec.teacher.revision",
        "spec.data.holdoutPercent",
        "spec.pipeline.mlfs",
        "spec.evaluation.metric",
    ]


def test_a_broken_rule_is_told_beside_malformed_fields_elsewhere(manifest_with: ManifestWith) -> None:
    edits = {
        "deviceTargets": [],
        "pipeline.mlfs.rnk": 1,
        "seed": "a",
        "data.holdoutPercent": 0,
        "teacher.task": None,
    }
    assert [problem.path for problem in find_problems(manifest_with(edits))] == [
        "spec.seed",
        "spec.teacher.task",
        "spec.pipeline.mlfs.rnk",
        "spec.deviceTargets",
        "spec.data.holdoutPercent",
    ]


def test_a_rule_is_not_held_against_a_field_that_is_malformed_anyway(manifest_with: ManifestWith) -> None:
    problems = find_problems(manifest_with({"data.train.labelColumn": 5}))
    assert [problem.path for problem in problems] == ["spec.data.train.labelColumn"]


def test_a_list_with_a_malformed_item_is_not_called_short(manifest_with: ManifestWith) -> None:
    problems = find_problems(manifest_with({"pipeline.mlfs.searchSpace.hidden": [1, "half"]}))
    assert [problem.path for problem in problems] == ["spec.pipeline.mlfs.searchSpace.hidden[1]"]


def test_a_list_of_malformed_items_that_is_too_long_is_told_both(manifest_with: ManifestWith) -> None:
    problems = lines(manifest_with({"data.train.textColumns": ["a", "b", 3]}))
    assert problems == [
        "spec.data.train.textColumns[2]: expected a string of 1 to 256 characters, got the number 3; "
        + QUOTES,
        "spec.data.train.textColumns: a list of 3 is not allowed; expected a list of 1 to 2",
    ]


def test_parse_raises_with_every_problem(manifest_with: ManifestWith) -> None:
    manifest = manifest_with({"seed": -1, "pipeline.mlfs.rank": 0})
    with pytest.raises(InvalidManifestError) as raised:
        parse(manifest)
    assert list(raised.value.problems) == find_problems(manifest)
    assert str(raised.value) == (
        "spec.seed: -1 is not allowed; expected an integer from 0 to 2147483647\n"
        "spec.pipeline.mlfs.rank: 0 is not allowed; expected an integer from 1 to 1024"
    )


def test_finding_problems_leaves_the_manifest_alone(manifest_with: ManifestWith) -> None:
    edits = {"deviceTargets": [], "pipeline.mlfs.rnk": 1}
    manifest = manifest_with(edits)
    find_problems(manifest)
    assert manifest == manifest_with(edits)


# --- any damage --------------------------------------------------------------------------------

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates()
DAMAGE = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6) | st.integers(), inner, max_size=3)
    ),
    max_leaves=6,
)


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    entries = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in entries:
        yield from places(value, (*path, key))


@settings(deadline=None, max_examples=60)
@given(data=st.data(), damage=DAMAGE)
def test_any_damage_yields_sentences_or_a_run(data: st.DataObject, damage: Any) -> None:
    whole = yaml.safe_load(WHOLE)
    *above, last = data.draw(st.sampled_from(sorted(places(whole), key=str)))
    parent = whole
    for key in above:
        parent = parent[key]
    parent[last] = damage
    problems = find_problems(whole)
    if problems:
        assert all(problem.message and str(problem).isprintable() for problem in problems)
        with pytest.raises(InvalidManifestError):
            parse(whole)
    else:
        assert parse(whole).spec.digest()


WHOLE = inspect.cleandoc(
    """
    apiVersion: ireko.dev/v1alpha1
    kind: CompressionRun
    metadata: {name: whole, labels: {team: edge}}
    spec:
      seed: 1
      teacher: {model: hf://org/name, revision: main, task: text-classification}
      data:
        labels: [negative, positive]
        train: {uri: train.csv, textColumns: [premise, hypothesis], labelColumn: label}
        validation: {uri: dev.csv, textColumns: [premise, hypothesis], labelColumn: label}
      pipeline:
        mlfs:
          searchSpace: {hidden: [1, 0.5], intermediate: [1, 0.25], layers: [1, 0.5]}
          stages: {teacher: {method: LowRank, steps: 10}, widths: {learningRate: 2e-3}}
          distillation: {teacher: InPlace, alpha: 0.5}
          recovery: {steps: 10}
        quantization: {importance: ZD, bits: [2, 4], averageBits: 3, groupSize: 32}
      deviceTargets:
        - {name: phone, constraints: {maxSizeMiB: 20, minQuality: 0.8}}
        - {name: watch, constraints: {maxSizeMiB: 5, minQualityRatio: 0.9}}
      evaluation: {metric: f1, limit: 100}
      compute:
        workers: 2
        resourcesPerWorker: {cpu: 500m, memory: 1Gi}
        head: {resources: {cpu: 2, memory: 4Gi}}
        image: registry.example/ireko/trainer:1
        imagePullSecrets: [registry]
        serviceAccountName: trainer
        nodeSelector: {kubernetes.io/arch: amd64}
        tolerations: [{key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}]
        podTemplate:
          metadata: {labels: {team: edge}}
          spec: {affinity: {nodeAffinity: {}}, containers: [{name: trainer, tty: true}]}
        storage: {persistentVolumeClaim: {claimName: checkpoints, subPath: edge/whole}}
        queueName: gpus
        priorityClassName: low
        maxAttempts: 5
        retryBackoffSeconds: 10
        maxMemory: 4Gi
        activeDeadlineSeconds: 86400
        pendingDeadlineSeconds: 600
        ttlSecondsAfterFinished: 604800
      registry: {trackingUri: "http://mlflow:5000", modelName: family, credentialsSecret: mlflow}
      suspend: false
    """
)


def test_the_manifest_with_everything_is_valid() -> None:
    assert lines(yaml.safe_load(WHOLE)) == []
