"""`ireko operator`: its options, each of them also an environment variable."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ireko_operator.errors import OperatorError, UsageError
from ireko_operator.launch.platform import PolicyException, SubmissionMode
from ireko_operator.process.footprint import leave_out_what_is_not_needed
from ireko_operator.process.logs import LogFormat
from ireko_operator.process.settings import (
    OperatorSettings,
    own_identity,
    own_namespace,
    read_pod_defaults,
)
from ireko_operator.render import error_console


def operator(
    namespace: Annotated[
        list[str] | None,
        typer.Option(
            envvar="IREKO_NAMESPACE",
            help="Handle the runs of this namespace; may be given several times. Default: of all namespaces.",
        ),
    ] = None,
    trainer_image: Annotated[
        str | None,
        typer.Option(envvar="IREKO_TRAINER_IMAGE", help="Image of the trainer, for runs that name none."),
    ] = None,
    tracking_uri: Annotated[
        str | None,
        typer.Option(envvar="IREKO_TRACKING_URI", help="MLflow server, for runs that name none."),
    ] = None,
    allowed_tracking_uri: Annotated[
        list[str] | None,
        typer.Option(
            envvar="IREKO_ALLOWED_TRACKING_URI",
            help="Another MLflow server that runs may name; may be given several times.",
        ),
    ] = None,
    pod_defaults: Annotated[
        Path | None,
        typer.Option(
            envvar="IREKO_POD_DEFAULTS",
            help="YAML file with a pod template that every pod of every run starts from; nothing in it is refused.",
        ),
    ] = None,
    allow: Annotated[
        list[PolicyException] | None,
        typer.Option(
            envvar="IREKO_ALLOW",
            help="Something that pod templates of runs may do though it is refused otherwise; may be given several "
            "times.",
        ),
    ] = None,
    submission_mode: Annotated[
        SubmissionMode,
        typer.Option(envvar="IREKO_SUBMISSION_MODE", help="How KubeRay starts the trainer."),
    ] = SubmissionMode.K8S_JOB,
    workers: Annotated[
        int, typer.Option(envvar="IREKO_WORKERS", min=1, max=64, help="Runs that are looked at at once.")
    ] = 4,
    progress_interval: Annotated[
        float,
        typer.Option(
            envvar="IREKO_PROGRESS_INTERVAL",
            min=1.0,
            help="Seconds between two looks at the progress that MLflow knows.",
        ),
    ] = 15.0,
    leader_elect: Annotated[
        bool,
        typer.Option(
            envvar="IREKO_LEADER_ELECT",
            help="Work only while holding a Lease, so that several operators may run at once.",
        ),
    ] = True,
    lease_name: Annotated[
        str, typer.Option(envvar="IREKO_LEASE_NAME", help="Name of the Lease.")
    ] = "ireko-operator",
    lease_namespace: Annotated[
        str | None,
        typer.Option(
            envvar="IREKO_LEASE_NAMESPACE",
            help="Namespace of the Lease. Default: that of the pod that this is, else `default`.",
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(envvar="IREKO_HOST", help="Address of /healthz, /readyz and /metrics.")
    ] = "0.0.0.0",
    port: Annotated[
        int, typer.Option(envvar="IREKO_PORT", min=0, max=65535, help="Their port; 0 takes a free one.")
    ] = 8080,
    log_format: Annotated[
        LogFormat, typer.Option(envvar="IREKO_LOG_FORMAT", help="For programs or people.")
    ] = "json",
    log_level: Annotated[
        str, typer.Option(envvar="IREKO_LOG_LEVEL", help="debug, info, warning or error.")
    ] = "info",
    kubeconfig: Annotated[
        Path | None,
        typer.Option(
            envvar="IREKO_KUBECONFIG",
            help="How to reach the cluster. Default: as the pod that this is, else $KUBECONFIG, else ~/.kube/config.",
        ),
    ] = None,
) -> None:
    """Handle the CompressionRuns of a Kubernetes cluster, as long as it runs."""
    try:
        settings = OperatorSettings(
            namespaces=tuple(dict.fromkeys(namespace or ())),
            trainer_image=_given(trainer_image),
            tracking_uri=tracking_uri,
            allowed_tracking_uris=frozenset(allowed_tracking_uri or ()),
            pod_defaults=read_pod_defaults(pod_defaults),
            exceptions=frozenset(allow or ()),
            submission_mode=submission_mode,
            workers=workers,
            progress_interval=progress_interval,
            leader_elect=leader_elect,
            lease_name=lease_name,
            lease_namespace=lease_namespace or own_namespace(),
            identity=own_identity(),
            host=host,
            port=port,
            log_format=log_format,
            log_level=_level(log_level),
            kubeconfig=kubeconfig,
        )
        leave_out_what_is_not_needed()
        from ireko_operator.process.operator import run_operator

        exit_status = run_operator(settings)
    except OperatorError as error:
        error_console().print(str(error), markup=False)
        raise typer.Exit(error.exit_code) from None
    raise typer.Exit(exit_status)


def _given(trainer_image: str | None) -> str:
    if not trainer_image:
        raise UsageError(
            "The image that runs are trained in is not known: name it with --trainer-image or $IREKO_TRAINER_IMAGE."
        )
    return trainer_image


def _level(name: str) -> str:
    if name.lower() not in ("debug", "info", "warning", "error"):
        raise UsageError(f"--log-level {name}: choose debug, info, warning or error.")
    return name.lower()
