"""What is wrong with a run on this cluster before anything is started, by its manifest and the settings alone."""

from __future__ import annotations

from ireko_api.reasons import Reason
from ireko_api.spec import CompressionRun
from ireko_operator.launch import Trouble
from ireko_operator.launch.platform import Platform
from ireko_operator.launch.policy import refused_fields


def find_trouble(run: CompressionRun, *, platform: Platform) -> Trouble | None:
    """The first thing that keeps the run from being started here; None when nothing does."""
    return _tracking(run, platform) or _storage(run) or _image(run, platform) or _template(run, platform)


def _tracking(run: CompressionRun, platform: Platform) -> Trouble | None:
    named = run.spec.registry.tracking_uri
    if named is None:
        if platform.tracking_uri is not None:
            return None
        return Trouble(
            reason=Reason.TRACKING_REQUIRED,
            message="Neither spec.registry.trackingUri nor the operator's --tracking-uri names an MLflow server: "
            "set the operator's.",
        )
    if named == platform.tracking_uri or named in platform.allowed_tracking_uris:
        return None
    return Trouble(
        reason=Reason.TRACKING_NOT_ALLOWED,
        message="spec.registry.trackingUri names an MLflow server that the operator may not use: leave it out, or "
        "have the administrator add it to the operator's --allowed-tracking-uri.",
    )


def _storage(run: CompressionRun) -> Trouble | None:
    if run.spec.compute.storage is not None:
        return None
    return Trouble(
        reason=Reason.STORAGE_REQUIRED,
        message="spec.compute.storage is required on a cluster, because pods keep nothing: delete the run and apply "
        "it with persistentVolumeClaim or objectStore.",
    )


def _image(run: CompressionRun, platform: Platform) -> Trouble | None:
    if run.spec.compute.image is not None or platform.trainer_image is not None:
        return None
    return Trouble(
        reason=Reason.IMAGE_REQUIRED,
        message="Neither spec.compute.image nor the operator's --trainer-image names the trainer's image: set the "
        "operator's.",
    )


def _template(run: CompressionRun, platform: Platform) -> Trouble | None:
    refused = refused_fields(run.spec.compute, platform=platform)
    if not refused:
        return None
    listed = "; ".join(f"spec.compute.{field.path} {field.why}" for field in refused)
    return Trouble(
        reason=Reason.POD_TEMPLATE_REFUSED,
        message=f"The pods may do no more than train. {listed}. Leave this out in a new run, or have the administrator "
        "allow the exception with the operator's --allow.",
    )
