"""etcd, kube-apiserver, the controllers and the scheduler, wherever their network is.

The API tier runs them on loopback, the node tier in the network namespace that its nodes are plugged into; what
differs between the two is `Settings`.
"""

from __future__ import annotations

import ssl
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rig.binaries import Programs
from rig.kubeconfig import write_kubeconfig
from rig.pki import Authority, Pair
from rig.processes import Process, free_port, wait_until

LOOPBACK = "127.0.0.1"
ADMINS = "system:masters"
ISSUER = "https://kubernetes.default.svc.cluster.local"

_API_READY_SECONDS = 300
"""Four seconds on an idle machine; a machine that is also compiling gets the time it needs."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Where the control plane runs and how much of it."""

    address: str = LOOPBACK
    """The IP address that the API server listens on and announces."""
    port: int
    services: str = "10.96.0.0/16"
    """The range of Service addresses."""
    first_service: str = "10.96.0.1"
    """The address in it that is the API server's own."""
    prefix: tuple[str, ...] = ()
    """What a command must stand behind to run there, e.g. nsenter with its arguments."""
    nodes: bool = False
    """Whether kubelets will join: they authenticate as nodes, pods get their names from the scheduler."""
    controllers: tuple[str, ...] = ("*",)
    controller_flags: tuple[str, ...] = ()


@dataclass
class ControlPlane:
    """A control plane in one folder: keys, logs, etcd's data."""

    directory: Path
    programs: Programs
    settings: Settings
    authority: Authority = field(init=False)
    processes: dict[str, Process] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.authority = Authority(self.directory / "pki")
        self._tokens = self.authority.signing_key("service-accounts")
        names = [
            "localhost",
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            ISSUER.split("//")[1],
        ]
        addresses = sorted({LOOPBACK, self.settings.address, self.settings.first_service})
        self._serving = self.authority.server("kube-apiserver", addresses=addresses, names=names)
        self._to_kubelets = self.authority.client("kube-apiserver", groups=[ADMINS])
        self._etcd_port, self._peer_port = free_port(), free_port()
        self.kubeconfig = self.identity("admin", groups=[ADMINS])
        self._tls = ssl.create_default_context(cafile=str(self.authority.certificate))

    @property
    def url(self) -> str:
        """Where the API server answers."""
        return f"https://{self.settings.address}:{self.settings.port}"

    def identity(self, user: str, *, groups: Sequence[str] = ()) -> Path:
        """A kubeconfig of `user`, proved by a client certificate."""
        pair = self.authority.client(user, groups=groups)
        file = user.replace(":", "-").replace("/", "-")
        return write_kubeconfig(
            self.directory / f"{file}.kubeconfig",
            url=self.url,
            authority=self.authority.certificate,
            user=pair.embedded(),
        )

    def start(self) -> None:
        """Start everything; returns when the API server is ready (the controllers may still be starting)."""
        self._start_etcd()
        self.start_api()
        self._start_controllers()
        if self.settings.nodes:
            self._start_scheduler()

    def stop(self) -> None:
        """End everything, clients first, so that none of them logs the end of its server."""
        for name in reversed(list(self.processes)):
            self.processes[name].kill()
        self.processes.clear()

    def start_api(self) -> None:
        """Start the API server (again) and wait until it is ready."""
        self.processes["kube-apiserver"] = self._run("kube-apiserver", self._api_flags())
        watched = [self.processes[name] for name in ("kube-apiserver", "etcd")]
        wait_until(self.ready, what="the API server", timeout=_API_READY_SECONDS, watched=watched)

    def stop_api(self) -> None:
        """End the API server as a crash would: its clients' watches break, etcd keeps the data."""
        self.processes["kube-apiserver"].kill()

    def ready(self) -> bool:
        """Whether the API server says that it is."""
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=10, context=self._tls) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def _run(self, program: str, flags: Sequence[str]) -> Process:
        return Process(
            name=program,
            command=[self.programs.path(program), *flags],
            log=self.directory / "log" / f"{program}.log",
            prefix=self.settings.prefix,
        )

    def _start_etcd(self) -> None:
        client, peer = f"http://{LOOPBACK}:{self._etcd_port}", f"http://{LOOPBACK}:{self._peer_port}"
        flags = [
            "--name=ireko",
            f"--data-dir={self.directory / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=ireko={peer}",
            "--unsafe-no-fsync",  # the data are a test's and die with it
            "--log-level=warn",
        ]
        self.processes["etcd"] = self._run("etcd", flags)

    def _api_flags(self) -> list[str]:
        settings, ca = self.settings, self.authority.certificate
        flags = [
            f"--etcd-servers=http://{LOOPBACK}:{self._etcd_port}",
            f"--bind-address={settings.address}",
            f"--advertise-address={settings.address}",
            f"--secure-port={settings.port}",
            f"--service-cluster-ip-range={settings.services}",
            f"--tls-cert-file={self._serving.certificate}",
            f"--tls-private-key-file={self._serving.key}",
            f"--client-ca-file={ca}",
            f"--requestheader-client-ca-file={ca}",
            "--requestheader-allowed-names=front-proxy",
            f"--service-account-issuer={ISSUER}",
            f"--service-account-key-file={self._tokens.certificate}",
            f"--service-account-signing-key-file={self._tokens.key}",
            "--authorization-mode=Node,RBAC",
            "--allow-privileged=true",
        ]
        return [*flags, *(self._kubelet_flags(self._to_kubelets) if settings.nodes else _NO_ENDPOINTS)]

    def _kubelet_flags(self, pair: Pair) -> list[str]:
        return [
            "--enable-admission-plugins=NodeRestriction",
            f"--kubelet-client-certificate={pair.certificate}",
            f"--kubelet-client-key={pair.key}",
            f"--kubelet-certificate-authority={self.authority.certificate}",
            "--kubelet-preferred-address-types=InternalIP",
        ]

    def _start_controllers(self) -> None:
        flags = [
            *self._client_flags("system:kube-controller-manager"),
            f"--service-account-private-key-file={self._tokens.key}",
            f"--root-ca-file={self.authority.certificate}",
            "--use-service-account-credentials=true",
            f"--controllers={','.join(self.settings.controllers)}",
            # At the default of 20 requests a second a new namespace waits for its service account.
            "--kube-api-qps=500",
            "--kube-api-burst=1000",
            "--allocate-node-cidrs=false",
            *self.settings.controller_flags,
        ]
        self.processes["kube-controller-manager"] = self._run("kube-controller-manager", flags)

    def _start_scheduler(self) -> None:
        self.processes["kube-scheduler"] = self._run(
            "kube-scheduler", self._client_flags("system:kube-scheduler")
        )

    def _client_flags(self, user: str) -> list[str]:
        kubeconfig = self.identity(user)
        return [
            f"--kubeconfig={kubeconfig}",
            f"--authentication-kubeconfig={kubeconfig}",
            f"--authorization-kubeconfig={kubeconfig}",
            f"--bind-address={LOOPBACK}",
            f"--secure-port={free_port()}",
            "--leader-elect=false",
        ]


_NO_ENDPOINTS = ["--endpoint-reconciler-type=none"]
"""An API server on loopback is no endpoint that a Service may have."""
