"""The words that conditions are written in: every type and every reason, with what a person needs to know.

Programs match on these, so a reason is never renamed and never means two things. `sentence` says what the
reason tells a person, `cause` where it comes from, `remedy` what to do; the message of a condition adds the
particulars. The runbook and the reference page are generated from here.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Self


class _Word(StrEnum):
    """A member is its word; `sentence` says what the word tells a person."""

    sentence: str
    cause: str
    remedy: str

    def __new__(cls, word: str, sentence: str = "", cause: str = "", remedy: str = "") -> Self:
        """Make the member for `word`, which alone is its value and finds it again: `Reason("Waiting")`."""
        member = str.__new__(cls, word)
        member._value_ = word
        member.sentence = sentence
        member.cause = cause
        member.remedy = remedy
        return member


class ConditionType(_Word):
    """The aspects of a run's state, in the order in which they come true."""

    VALID = "Valid", "The manifest can be executed as it stands, here and by this operator."
    ADMITTED = (
        "Admitted",
        "On a cluster: the run may use its quota now; neither a queue nor a pause holds it back.",
    )
    CLUSTER_READY = "ClusterReady", "On a cluster: the pods of the current attempt run."
    TRAINED = "Trained", "The trainer finished and handed over a family."
    REGISTERED = (
        "Registered",
        "Every member is a version of the registered model, under its device target's alias.",
    )
    SUCCEEDED = (
        "Succeeded",
        "The run is over: True with everything done, False when it cannot go on by itself.",
    )


_AS_IT_SHOULD = "This is the ordinary course of a run."
_NOTHING = "Nothing."


class Reason(_Word):
    """Why a condition has the status that it has."""

    # --- Valid ---

    ACCEPTED = "Accepted", "Valid: every check on the manifest passed.", _AS_IT_SHOULD, _NOTHING
    INVALID_SPEC = (
        "InvalidSpec",
        "Valid: the operator cannot execute this manifest.",
        "The CustomResourceDefinition in the cluster is older or newer than the operator, so the API server let "
        "through what the operator does not take.",
        "Upgrade the CustomResourceDefinition together with the operator, delete the run, and apply a mended manifest.",
    )
    STORAGE_REQUIRED = (
        "StorageRequired",
        "Valid: the run does not say where checkpoints and outputs are kept.",
        "`spec.compute.storage` is absent. A laptop needs none, pods do.",
        "Delete the run and apply it with `spec.compute.storage.persistentVolumeClaim` or "
        "`spec.compute.storage.objectStore`.",
    )
    TRACKING_REQUIRED = (
        "TrackingRequired",
        "Valid: neither the run nor the operator names an MLflow server.",
        "`spec.registry.trackingUri` is absent and the operator was started without `--tracking-uri`.",
        "Set the operator's tracking URI; the run then starts by itself.",
    )
    TRACKING_NOT_ALLOWED = (
        "TrackingNotAllowed",
        "Valid: the run names an MLflow server that the operator may not talk to.",
        "`spec.registry.trackingUri` is not among the operator's allowed tracking URIs. Otherwise the author of a "
        "run could make the operator send requests to any address.",
        "Drop `spec.registry.trackingUri`, or ask the administrator to allow it (`--allowed-tracking-uri`).",
    )
    POD_TEMPLATE_REFUSED = (
        "PodTemplateRefused",
        "Valid: the pods that the run asks for may do more than train.",
        "`spec.compute.podTemplate` sets fields that the operator's policy refuses; the message names each.",
        "Remove these fields, or ask the administrator to allow the named exception (`--allow`).",
    )
    IMAGE_REQUIRED = (
        "ImageRequired",
        "Valid: neither the run nor the operator names the trainer's image.",
        "`spec.compute.image` is absent and the operator was started without `--trainer-image`.",
        "Set the operator's trainer image; the run then starts by itself.",
    )

    # --- Admitted ---

    UNQUEUED = "Unqueued", "Admitted: the run waits in no queue.", _AS_IT_SHOULD, _NOTHING
    QUOTA_RESERVED = "QuotaReserved", "Admitted: the queue let the run through.", _AS_IT_SHOULD, _NOTHING
    QUEUE_PENDING = (
        "QueuePending",
        "Admitted: the run waits in its queue.",
        "Kueue has no quota free for it yet, or does not know the queue; the message has Kueue's own words.",
        "Wait, or look at the queue: `kubectl get localqueue,workload`.",
    )
    PREEMPTED = (
        "Preempted",
        "Admitted: the queue took the run's quota back.",
        "A workload with a higher priority needed it, the pods were not ready in time, or somebody stopped the queue "
        "or deactivated the workload; the message has Kueue's own words. The attempt's pods were stopped after they "
        "had saved their state.",
        "Wait, or have the queue or the workload activated again: the run goes on from its last checkpoint as soon as "
        "the queue lets it through.",
    )
    SUSPENDED = (
        "Suspended",
        "Admitted: the run is paused.",
        "Somebody set `spec.suspend` to true.",
        "Set it to false; the run goes on from its last checkpoint.",
    )

    # --- ClusterReady ---

    CLUSTER_STARTING = "ClusterStarting", "ClusterReady: the pods are being started.", _AS_IT_SHOULD, _NOTHING
    PODS_RUNNING = "PodsRunning", "ClusterReady: the pods run.", _AS_IT_SHOULD, _NOTHING
    CLUSTER_RELEASED = (
        "ClusterReleased",
        "ClusterReady: no attempt needs pods now.",
        "The attempt is over, or none has been started.",
        _NOTHING,
    )
    KUBERAY_MISSING = (
        "KubeRayMissing",
        "ClusterReady: the cluster does not know RayJobs.",
        "KubeRay's CustomResourceDefinitions are not installed.",
        "Install the KubeRay operator; the run then starts by itself.",
    )
    SECRET_MISSING = (
        "SecretMissing",
        "ClusterReady: a Secret that the run names does not exist.",
        "`registry.credentialsSecret`, `storage.objectStore.credentialsSecret` or the pod template names a Secret, or "
        "a key of one, that is absent from the run's namespace.",
        "Create it in the run's namespace; the pods then start by themselves.",
    )
    CONFIG_MAP_MISSING = (
        "ConfigMapMissing",
        "ClusterReady: a ConfigMap that the run names does not exist.",
        "The pod template names a ConfigMap, or a key of one, that is absent from the run's namespace; or somebody "
        "deleted the one that the operator made for the attempt.",
        "Create it in the run's namespace; the pods then start by themselves.",
    )
    SERVICE_ACCOUNT_MISSING = (
        "ServiceAccountMissing",
        "ClusterReady: the run's service account does not exist.",
        "`spec.compute.serviceAccountName` names a service account that is absent from the run's namespace.",
        "Create it in the run's namespace; the pods then start by themselves.",
    )
    STORAGE_MISSING = (
        "StorageMissing",
        "ClusterReady: a volume of the run, most often the one that it keeps its state on, does not exist or cannot be "
        "mounted.",
        "`persistentVolumeClaim.claimName` names a claim that is absent from the run's namespace, is not bound, or "
        "is in use on another node; or the node cannot reach what is behind the volume. The message says which.",
        "Mend the volume, or create the claim in the run's namespace, as ReadWriteMany unless all pods land on one "
        "node; the pods then start by themselves.",
    )
    QUOTA_EXCEEDED = (
        "QuotaExceeded",
        "ClusterReady: the namespace's quota or limits do not admit the pods.",
        "A ResourceQuota or a LimitRange of the run's namespace refuses them; the message says which.",
        "Free quota or ask for more; the pods are tried again by themselves.",
    )
    IMAGE_PULL_FAILED = (
        "ImagePullFailed",
        "ClusterReady: the trainer's image cannot be pulled.",
        "The image does not exist, or `spec.compute.imagePullSecrets` do not open its registry.",
        "Push the image or mend the Secret; the pull is tried again by itself. For another image delete the run and "
        "apply it anew: it goes on where it stood only under the same object.",
    )
    UNSCHEDULABLE = (
        "Unschedulable",
        "ClusterReady, Trained: no node takes the pods.",
        "No node has the resources free that they ask for, or matches their node selector, affinity and tolerations.",
        "Add nodes or free some; the scheduler tries again by itself until `compute.pendingDeadlineSeconds`.",
    )
    POD_REFUSED = (
        "PodRefused",
        "ClusterReady: the cluster refuses the run's objects.",
        "The API server, an admission webhook or a policy of the namespace, such as Pod Security, refused the RayJob "
        "or its pods; the message has its words.",
        "Change what the message names; the operator tries again by itself.",
    )
    PODS_FAILING = (
        "PodsFailing",
        "ClusterReady: a pod of the attempt cannot start or crashes.",
        "Its container ends before Ray is up; the message has the pod's words.",
        "Look at the pod's log: `kubectl logs`. Most often the image lacks Ray or the trainer.",
    )

    # --- Trained ---

    WAITING = (
        "Waiting",
        "Trained, Registered, Succeeded: an earlier step is not done yet.",
        _AS_IT_SHOULD,
        _NOTHING,
    )
    TRAINING = "Training", "Trained: an attempt of the trainer is running.", _AS_IT_SHOULD, _NOTHING
    BACKING_OFF = (
        "BackingOff",
        "Trained: an attempt failed by something that may pass, and the next one waits.",
        "The message names the trouble and when the next attempt starts.",
        "Nothing, or mend what the message names.",
    )
    FAMILY_COMPLETE = (
        "FamilyComplete",
        "Trained: the trainer handed over one member for each device target.",
        _AS_IT_SHOULD,
        _NOTHING,
    )
    INVALID_INPUT = (
        "InvalidInput",
        "Trained: the teacher or the data is not what the manifest says; mend it and run again.",
        "A file is absent, empty or misformed, or the teacher is not of the task; the message names it.",
        "Mend the file and run again, or mend the manifest and apply it under another name.",
    )
    NOTHING_FITS = (
        "NothingFits",
        "Trained: no member meets the constraints of some device target; loosen them or train longer.",
        "No subnet at any allowed bit width is small and good enough for the target that the message names.",
        "Loosen that target's constraints, allow fewer bits, or train longer.",
    )
    DIVERGED = (
        "Diverged",
        "Trained: the loss stopped being a number; lower the learning rate.",
        "The learning rate of the stage that the message names is too high for this teacher and data.",
        "Lower it and run again under another name.",
    )
    TRACKING_UNREACHABLE = (
        "TrackingUnreachable",
        "Trained, Registered: the MLflow server did not answer; the run goes on where it stood once it does.",
        "The server is down, its address is wrong, or a NetworkPolicy is in the way.",
        "Bring the server back; nothing that was finished is lost.",
    )
    STORAGE_FULL = (
        "StorageFull",
        "Trained: there was no room for checkpoints or outputs.",
        "The volume, the disk or the quota of the storage is used up.",
        "Make room there.",
    )
    STORAGE_NOT_WRITABLE = (
        "StorageNotWritable",
        "Trained: checkpoints and outputs cannot be written or read back.",
        "The volume is read-only or belongs to another user than the pods' group, or the bucket's credentials do not "
        "allow it.",
        "Mend the volume's permissions or the credentials; the next attempt goes on.",
    )
    WORKER_LOST = (
        "WorkerLost",
        "Trained: training workers died more often than the run allows.",
        "Their pods or nodes were lost more than `compute.maxWorkerFailures` times within one attempt.",
        "Nothing as a rule: the next attempt goes on from the last checkpoint.",
    )
    HEAD_LOST = (
        "HeadLost",
        "Trained: the pod that leads the Ray cluster was lost.",
        "It or its node died, or was drained, and the trainer's own process with it.",
        "Nothing as a rule: the next attempt goes on from the last checkpoint.",
    )
    OUT_OF_MEMORY = (
        "OutOfMemory",
        "Trained: a pod of the attempt needed more memory than it may use.",
        "The kernel ended it at its memory limit.",
        "Set `compute.maxMemory` so that attempts may grow, or lower `pipeline.mlfs.batchSize` or `maxLength` of the "
        "data in a new run.",
    )
    SUBMISSION_FAILED = (
        "SubmissionFailed",
        "Trained: KubeRay could not hand the trainer over to the Ray cluster.",
        "The cluster came up, but its dashboard did not take the job; a NetworkPolicy or an overloaded head may be "
        "the cause.",
        "Nothing as a rule: the next attempt tries again.",
    )
    RAY_JOB_INVALID = (
        "RayJobInvalid",
        "Trained: KubeRay refuses the RayJob as invalid.",
        "The installed KubeRay does not take an option that the operator or the pod template uses.",
        "Install a KubeRay that the release notes name, or change the part of the pod template in the message.",
    )
    CANCELLED = (
        "Cancelled",
        "Trained: the Ray job was stopped from outside.",
        "Somebody stopped it in Ray's dashboard or by its API.",
        "Pause a run with `spec.suspend` instead; this one has to be applied anew.",
    )
    DEADLINE_EXCEEDED = (
        "DeadlineExceeded",
        "Trained, Succeeded: the run took longer than it may.",
        "`compute.activeDeadlineSeconds` passed.",
        "Apply the run anew with more time.",
    )
    ATTEMPTS_EXHAUSTED = (
        "AttemptsExhausted",
        "Succeeded: as many attempts failed as the run allows.",
        "`compute.maxAttempts` attempts failed; `Trained` says why the last one did.",
        "Mend what the attempts in the status name and apply the run anew.",
    )
    INTERRUPTED = (
        "Interrupted",
        "Trained: the trainer was asked to stop; the next attempt goes on where it stood.",
        "Ctrl-C, a drained node, a pause or a preemption.",
        "Nothing on a cluster; on a laptop give the same command again.",
    )
    INTERNAL = (
        "Internal",
        "Trained: the trainer met an error it has no name for; its log has the details.",
        "A defect of Ireko or of a library under it.",
        "Look at the log, which has the traceback, and report it.",
    )
    TRAINER_DIED = (
        "TrainerDied",
        "Trained: the trainer ended without a word, as when it is killed or runs out of memory.",
        "Its process was killed, or it could write to neither MLflow nor the storage.",
        "Look at its log. Most often memory ran out.",
    )

    # --- Registered ---

    REGISTERING = (
        "Registering",
        "Registered: versions and aliases are being written.",
        _AS_IT_SHOULD,
        _NOTHING,
    )
    ALL_REGISTERED = (
        "AllRegistered",
        "Registered: every member has its version and its alias.",
        _AS_IT_SHOULD,
        _NOTHING,
    )
    REGISTRATION_FAILED = (
        "RegistrationFailed",
        "Registered: the MLflow server refused a version or an alias.",
        "The model's name is not allowed there, or the credentials do not suffice; the message has MLflow's words.",
        "Mend what MLflow names and run again; nothing is trained twice.",
    )

    BUNDLE_DAMAGED = (
        "BundleDamaged",
        "Registered: MLflow does not hold the models as the trainer handed them over.",
        "A file of a model is missing from the artifact store, or is not the one that was uploaded: an upload was cut "
        "off, or somebody deleted or changed it. The message names the model and the file.",
        "Restore the file in the artifact store; the registration is tried again by itself, and nothing is registered "
        "before. Where it cannot be restored, delete the run and apply it anew.",
    )

    # --- Succeeded ---

    IN_PROGRESS = "InProgress", "Succeeded: the run is under way.", _AS_IT_SHOULD, _NOTHING
    DELETING = (
        "Deleting",
        "Succeeded: the run was deleted; its pods are being stopped.",
        "Somebody deleted it, or its time to live passed.",
        _NOTHING,
    )
    COMPLETE = (
        "Complete",
        "Succeeded: the family is trained, registered and reported.",
        _AS_IT_SHOULD,
        _NOTHING,
    )
    FAILED = (
        "Failed",
        "Succeeded: a step failed; the condition of that step says why.",
        "The first condition that is False names the trouble.",
        "Look that reason up on this page.",
    )
