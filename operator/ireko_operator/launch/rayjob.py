"""The objects of one attempt on a cluster, computed from the run and the administrator's settings alone.

No text of the run reaches a shell: KubeRay puts the entrypoint into a script as it stands, so it is a
constant, and the specification travels in a ConfigMap. What the run says about its pods is laid over what the
operator builds and the administrator's defaults, and was checked by `policy` before.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ireko_api.handoff import RunRequest
from ireko_api.quantity import from_bytes, parse_quantity
from ireko_api.spec import API_VERSION, KIND, CompressionRun, CompressionRunSpec, Storage
from ireko_operator.launch import Memory
from ireko_operator.launch.platform import Platform, SubmissionMode
from ireko_operator.launch.pods import Template, hardened, merge

LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGED_BY = "ireko"
LABEL_RUN = "ireko.dev/run"
LABEL_RUN_UID = "ireko.dev/run-uid"
LABEL_ATTEMPT = "ireko.dev/attempt"
LABEL_QUEUE = "kueue.x-k8s.io/queue-name"

ENTRYPOINT = "python -m ireko_trainer /etc/ireko/request.json"
STOP_HOOK = ("python", "-m", "ireko_trainer.stop", "/etc/ireko/request.json")
"""Runs in the head pod before it is stopped: KubeRay takes the pods of a suspended job away without a word to it."""
REQUEST_DIRECTORY = "/etc/ireko"
REQUEST_FILE = "request.json"
STORAGE_DIRECTORY = "/var/lib/ireko/storage"
"""Where a claim is mounted, and what relative paths of the manifest start at."""
TRAINER_CONTAINER = "trainer"

TERMINATION_GRACE_SECONDS = 120
"""How long a trainer may take to save its state."""
_LONGEST_STEM = 30
_GROUP = 10001
"""Group of the trainer's image; what a volume is made writable for, whatever the image."""
_OBJECT_STORE_BYTES = 128 * 2**20
"""Of Ray, in shared memory: nothing of size passes through it, and its default is a third of the memory."""
_SUBMITTER_RESOURCES = {
    "requests": {"cpu": "100m", "memory": "256Mi"},
    "limits": {"cpu": "1", "memory": "1Gi"},
}


@dataclass(frozen=True, kw_only=True)
class AttemptManifests:
    """What one attempt is made of; both have the same name."""

    config_map: dict[str, Any]
    """Holds the request under `request.json`."""
    rayjob: dict[str, Any]


def attempt_name(*, run: str, uid: str, number: int) -> str:
    """The name of an attempt's objects: the same for the same attempt, at most 47 characters, a DNS-1035 label."""
    stem = run if run[0].isalpha() else f"r-{run}"
    digest = hashlib.sha256(uid.encode()).hexdigest()[:6]
    return f"{stem[:_LONGEST_STEM].rstrip('-')}-{digest}-{number}"


def attempt_labels(*, run: str, uid: str, number: int) -> dict[str, str]:
    """The labels of everything that belongs to an attempt."""
    return {
        LABEL_MANAGED_BY: MANAGED_BY,
        LABEL_RUN: run,
        LABEL_RUN_UID: uid,
        LABEL_ATTEMPT: str(number),
    }


def tracking_uri_of(run: CompressionRun, *, platform: Platform) -> str | None:
    """The MLflow server of a run: its own where it names one, else the operator's."""
    return run.spec.registry.tracking_uri or platform.tracking_uri


def request_of(run: CompressionRun, *, number: int, platform: Platform) -> RunRequest:
    """What the trainer of an attempt is started with; `checks.find_trouble` found nothing wrong with the run."""
    uid, storage = run.metadata.uid, run.spec.compute.storage
    tracking_uri = tracking_uri_of(run, platform=platform)
    if uid is None or storage is None or tracking_uri is None:
        raise ValueError("an attempt needs the run's uid, its storage and a tracking URI")
    return RunRequest(
        name=run.metadata.name,
        namespace=run.metadata.namespace,
        uid=uid,
        spec_digest=run.spec.digest(),
        spec=run.spec,
        base_dir=STORAGE_DIRECTORY,
        storage=_place(storage, uid),
        tracking_uri=tracking_uri,
        attempt=number,
    )


def build_attempt(
    run: CompressionRun, *, number: int, memory: Memory, platform: Platform
) -> AttemptManifests:
    """The ConfigMap and the RayJob of an attempt; `checks.find_trouble` found nothing wrong with the run."""
    request = request_of(run, number=number, platform=platform)
    name = attempt_name(run=run.metadata.name, uid=request.uid, number=number)
    labels = attempt_labels(run=run.metadata.name, uid=request.uid, number=number)
    owner = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": run.metadata.name,
        "uid": request.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
    metadata = {"name": name, "namespace": run.metadata.namespace, "ownerReferences": [owner]}
    queue = run.spec.compute.queue_name
    return AttemptManifests(
        config_map={
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {**metadata, "labels": labels},
            "immutable": True,
            "data": {REQUEST_FILE: request.to_json()},
        },
        rayjob={
            "apiVersion": "ray.io/v1",
            "kind": "RayJob",
            "metadata": {**metadata, "labels": {**labels, **({LABEL_QUEUE: queue} if queue else {})}},
            "spec": _job(run, name=name, labels=labels, memory=memory, platform=platform),
        },
    )


def _place(storage: Storage, uid: str) -> str:
    """The directory or URI of one run: the same for all its attempts."""
    if storage.object_store is not None:
        return f"{storage.object_store.uri.rstrip('/')}/{uid}"
    return f"{STORAGE_DIRECTORY}/{uid}"


def _job(
    run: CompressionRun, *, name: str, labels: Mapping[str, str], memory: Memory, platform: Platform
) -> Template:
    spec = run.spec
    pods = _Pods(run=run, name=name, labels=labels, platform=platform)
    job: Template = {
        "entrypoint": ENTRYPOINT,
        "entrypointNumCpus": 0,
        "submissionMode": platform.submission_mode.value,
        "backoffLimit": 0,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": 0,
        "rayClusterSpec": {
            "rayVersion": platform.ray_version,
            "enableInTreeAutoscaling": False,
            "authOptions": {"mode": "token"},
            "headGroupSpec": {
                # Without cores for Ray's own scheduling nothing but the trainer runs on the head.
                "rayStartParams": {"dashboard-host": "0.0.0.0", "num-cpus": "0", **_object_store()},
                "template": pods.ray(_head_resources(spec, memory), is_head=True),
            },
            "workerGroupSpecs": [_workers(spec, memory, pods)] if spec.training_workers else [],
        },
    }
    if platform.submission_mode is SubmissionMode.K8S_JOB:
        job["submitterPodTemplate"] = pods.submitter()
    if spec.compute.queue_name is not None:
        job["suspend"] = True
    return job


def _workers(spec: CompressionRunSpec, memory: Memory, pods: _Pods) -> Template:
    each, count = spec.compute.resources_per_worker, spec.training_workers
    return {
        "groupName": "workers",
        "replicas": count,
        "minReplicas": count,
        "maxReplicas": count,
        "numOfHosts": 1,
        # KubeRay counts the cores of a container by its limit, and there is none.
        "rayStartParams": {"num-cpus": str(math.ceil(each.cpus)), **_object_store()},
        "template": pods.ray(_resources(cpu=each.cpu, memory=memory.worker, gpu=each.gpu), is_head=False),
    }


_STOP_SECONDS = TERMINATION_GRACE_SECONDS - 20
"""How long Ray lets a stopped trainer save its state, within the time that Kubernetes gives the pod."""


def _object_store() -> dict[str, str]:
    return {"object-store-memory": str(_OBJECT_STORE_BYTES)}


def _head_resources(spec: CompressionRunSpec, memory: Memory) -> Template:
    """Without workers the head trains itself and gets what a worker would, where that is more."""
    compute = spec.compute
    cpu, gpu = compute.head.resources.cpu, 0
    if spec.training_workers == 0:
        cpu = max(cpu, compute.resources_per_worker.cpu, key=parse_quantity)
        gpu = compute.resources_per_worker.gpu
    return _resources(cpu=cpu, memory=memory.head, gpu=gpu)


def _resources(*, cpu: str, memory: int, gpu: int) -> Template:
    """Requests and limits of a container of Ray.

    Its cores are not limited: Ray's daemons end when they cannot start within seconds, which a limit makes likelier
    than busy neighbours do, and a trainer that may use idle cores is done sooner.
    """
    limits = {"memory": from_bytes(memory), **({"nvidia.com/gpu": str(gpu)} if gpu else {})}
    return {"requests": {"cpu": cpu, **limits}, "limits": limits}


@dataclass(frozen=True, kw_only=True)
class _Pods:
    """The pod templates of one attempt: what is the same in all, and what is laid over it."""

    run: CompressionRun
    name: str
    labels: Mapping[str, str]
    platform: Platform

    def ray(self, resources: Template, *, is_head: bool) -> Template:
        """A pod of the Ray cluster, whose trainer may use `resources`."""
        spec = self._spec()
        spec["terminationGracePeriodSeconds"] = TERMINATION_GRACE_SECONDS
        spec["volumes"] = self._volumes()
        container = self._trainer(resources)
        if is_head:
            container["lifecycle"] = {"preStop": {"exec": {"command": list(STOP_HOOK)}}}
        spec["containers"] = [container]
        return self._finished({"spec": spec}, self._own_template())

    def submitter(self) -> Template:
        """The pod that hands the trainer over to the Ray cluster and follows its output."""
        spec = self._spec()
        spec["restartPolicy"] = "Never"
        spec["volumes"] = [{"name": "tmp", "emptyDir": {}}]
        spec["containers"] = [
            {
                "name": TRAINER_CONTAINER,
                "image": self._image(),
                "env": _environment(),
                "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
                "securityContext": {"readOnlyRootFilesystem": True},
            }
        ]
        own = self._own_template()
        # What the run asks for its trainer is not meant for the pod that only waits for it.
        for field in ("containers", "initContainers", "resourceClaims"):
            own.get("spec", {}).pop(field, None)
        template = self._finished({"spec": spec}, own)
        template["spec"]["containers"][0]["resources"] = copy.deepcopy(_SUBMITTER_RESOURCES)
        return template

    def _finished(self, template: Template, own: Template) -> Template:
        merged = merge(merge(template, self.platform.pod_defaults), own)
        return merge(hardened(merged), {"metadata": {"labels": dict(self.labels)}})

    def _own_template(self) -> Template:
        template = self.run.spec.compute.pod_template
        return template.as_manifest() if template is not None else {}

    def _image(self) -> str:
        image = self.run.spec.compute.image or self.platform.trainer_image
        if image is None:
            raise ValueError("an attempt needs an image")
        return image

    def _spec(self) -> Template:
        compute = self.run.spec.compute
        spec: Template = {
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": {"fsGroup": _GROUP, "fsGroupChangePolicy": "OnRootMismatch"},
        }
        if compute.image_pull_secrets:
            spec["imagePullSecrets"] = [{"name": name} for name in compute.image_pull_secrets]
        if compute.service_account_name is not None:
            spec["serviceAccountName"] = compute.service_account_name
        if compute.priority_class_name is not None:
            spec["priorityClassName"] = compute.priority_class_name
        if compute.node_selector:
            spec["nodeSelector"] = dict(compute.node_selector)
        if compute.tolerations:
            spec["tolerations"] = [
                toleration.model_dump(mode="json", by_alias=True, exclude_none=True)
                for toleration in compute.tolerations
            ]
        return spec

    def _volumes(self) -> list[Template]:
        volumes: list[Template] = [
            {"name": "request", "configMap": {"name": self.name}},
            {"name": "shared-memory", "emptyDir": {"medium": "Memory"}},
            {"name": "tmp", "emptyDir": {}},
        ]
        claim = self._claim()
        if claim is not None:
            volumes.append({"name": "storage", "persistentVolumeClaim": {"claimName": claim.claim_name}})
        return volumes

    def _trainer(self, resources: Template) -> Template:
        mounts: list[Template] = [
            {"name": "request", "mountPath": REQUEST_DIRECTORY, "readOnly": True},
            {"name": "shared-memory", "mountPath": "/dev/shm"},
            {"name": "tmp", "mountPath": "/tmp"},
        ]
        claim = self._claim()
        if claim is not None:
            mount = {"name": "storage", "mountPath": STORAGE_DIRECTORY}
            mounts.append({**mount, "subPath": claim.sub_path} if claim.sub_path else mount)
        container: Template = {
            "name": TRAINER_CONTAINER,
            "image": self._image(),
            "env": _environment(),
            "resources": resources,
            "volumeMounts": mounts,
            "securityContext": {"readOnlyRootFilesystem": True},
        }
        secrets = self._secrets()
        if secrets:
            container["envFrom"] = [{"secretRef": {"name": name}} for name in secrets]
        return container

    def _claim(self) -> Any:
        storage = self.run.spec.compute.storage
        return storage.persistent_volume_claim if storage is not None else None

    def _secrets(self) -> list[str]:
        """Secrets whose keys become environment variables; of equal keys the registry's wins."""
        storage = self.run.spec.compute.storage
        store = storage.object_store if storage is not None else None
        named = [
            store.credentials_secret if store is not None else None,
            self.run.spec.registry.credentials_secret,
        ]
        return list(dict.fromkeys(name for name in named if name is not None))


def _environment() -> list[Template]:
    return [
        {"name": "HOME", "value": "/tmp"},
        {"name": "PYTHONUNBUFFERED", "value": "1"},
        {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"},
        # Ray gives a stopped job 3 seconds and a stopped node 30, which can be too few to save a state in.
        {"name": "RAY_JOB_STOP_WAIT_TIME_S", "value": str(_STOP_SECONDS)},
        {"name": "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "value": str(_STOP_SECONDS)},
    ]
