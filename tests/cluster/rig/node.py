"""One node: containerd, kubelet and kube-proxy in network, mount, PID and host-name namespaces of their own.

Everything in it hangs on its first process (`node_init.py`): killing that is pulling the plug, and it is also how
a node is taken down, so nothing of it can be forgotten.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rig import cgroups
from rig.binaries import Programs
from rig.control_plane import ControlPlane
from rig.errors import RigError
from rig.images import PAUSE
from rig.network import Switch, wait_until_apart
from rig.processes import Process, wait_until

HIDDEN = ("/run", "/var/lib", "/var/log")
"""Places of this machine that the node gets anew: fixed paths of containerd, runc, CNI, iptables and kubelet are
below."""

_KUBELET = "/var/lib/kubelet"
_FOLDERS = (
    "/run/containerd",
    "/run/lock",
    "/run/netns",
    "/var/lib/cni",
    _KUBELET,
    "/var/log/containers",
)
_SOCKET = "/run/containerd/containerd.sock"
_SETTINGS = {
    "vm/overcommit_memory": 1,
    "vm/panic_on_oom": 0,
    "kernel/panic": 10,
    "kernel/panic_on_oops": 1,
    "kernel/keys/root_maxkeys": 1000000,
    "kernel/keys/root_maxbytes": 25000000,
}
_UNUSED_PLUGINS = (
    "io.containerd.internal.v1.opt",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.internal.v1.tracing",
    "io.containerd.tracing.processor.v1.otlp",
)
_CNI_PROGRAMS = "/usr/lib/cni"
"""Where Debian and Ubuntu put the CNI plugins."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """What all nodes of a cluster share."""

    directory: Path
    programs: Programs
    plane: ControlPlane
    switch: Switch
    images: Sequence[Path]
    mounted: Mapping[Path, Path]
    """Folders of this machine that every container finds read-only, by the place where it finds them."""


class Node:
    """A running node."""

    def __init__(self, *, index: int, place: Place) -> None:
        """Start node number `index`; it registers itself with the API server."""
        self.index = index
        self.name = f"node-{index}"
        self._place = place
        self._directory = place.directory / self.name
        self._cgroup = f"ireko{place.switch.addresses.slot}-{self.name}"
        cgroups.make(self._cgroup)
        cable = self._directory / "cable"
        self._write_plan(cable)
        self.init = Process(name=self.name, command=self._command(), log=self._directory / "log" / "init.log")
        try:
            wait_until_apart(self.init, "net")
            place.switch.plug_in(self.init, index=index)
            wait_until(
                lambda: _open_pipe(cable),
                what=f"{self.name} to isolate itself",
                timeout=180,
                watched=[self.init],
            )
        except BaseException:
            self.stop()
            raise

    @property
    def address(self) -> str:
        """Its IP address."""
        return self._place.switch.addresses.node(self.index)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command inside the node, as somebody who logged in there would; raises RigError when it fails."""
        kinds = {"net": "net", "mount": "mnt", "uts": "uts", "ipc": "ipc", "pid": "pid_for_children"}
        spaces = [f"--{kind}=/proc/{self.init.pid}/ns/{file}" for kind, file in kinds.items()]
        done = subprocess.run(
            ["nsenter", *spaces, "--", *command], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise RigError(f"on {self.name}: {' '.join(command)}: {done.stderr.strip()}")
        return done

    def stop(self) -> None:
        """Pull the plug: all of the node's processes, mounts, cables and control groups are gone afterwards."""
        self.init.kill()
        self._place.switch.unplug(self.index)
        cgroups.remove(self._cgroup)

    def _command(self) -> list[str | Path]:
        spaces = ["--net", "--mount", "--pid", "--uts", "--ipc"]
        script = Path(__file__).with_name("node_init.py")
        inside = ["--fork", "--kill-child", "--mount-proc", "--propagation", "private", "--"]
        return [
            "unshare",
            *spaces,
            *inside,
            sys.executable,
            "-E",
            "-S",
            script,
            self._directory / "plan.json",
        ]

    def _write_plan(self, cable: Path) -> None:
        directory = self._directory
        for folder in ("kubelet", "log"):
            (directory / folder).mkdir(parents=True, exist_ok=True)
        if not cable.exists():
            os.mkfifo(cable)
        ctr = ["ctr", "--address", _SOCKET]
        plan: Mapping[str, Any] = {
            "name": self.name,
            "state": str(directory),
            "log": str(directory / "log"),
            "cable": str(cable),
            "hidden": HIDDEN,
            "folders": _FOLDERS,
            # Sockets lie in it, and the path of a socket may have 107 characters at most.
            "kept": {_KUBELET: str(directory / "kubelet")},
            "settings": _SETTINGS,
            "containerd": ["containerd", "--config", str(self._containerd_config()), "--log-level", "warn"],
            "ask": [*ctr, "version"],
            "import": [*ctr, "--namespace", "k8s.io", "images", "import"],
            "images": [str(path) for path in self._place.images],
            "kubelet": self._kubelet_command(),
            "kube-proxy": self._proxy_command(),
        }
        (directory / "plan.json").write_text(json.dumps(plan), encoding="utf-8")

    def _containerd_config(self) -> Path:
        directory = self._directory
        (directory / "cni").mkdir(exist_ok=True)
        network = {
            "cniVersion": "0.4.0",
            "name": "ireko",
            "plugins": [
                {
                    # Routed, not bridged: replies between two pods of one node pass the address translation of
                    # Services without the kernel module br_netfilter.
                    "type": "ptp",
                    "ipMasq": False,
                    "ipam": {
                        "type": "host-local",
                        "dataDir": str(directory / "addresses"),
                        "ranges": [[{"subnet": self._place.switch.addresses.pods_of(self.index)}]],
                        "routes": [{"dst": "0.0.0.0/0"}],
                    },
                },
                {"type": "portmap", "capabilities": {"portMappings": True}},
            ],
        }
        (directory / "cni" / "10-ireko.conflist").write_text(json.dumps(network), encoding="utf-8")
        base = _container_defaults(self._place.mounted)
        (directory / "container.json").write_text(json.dumps(base), encoding="utf-8")
        config = directory / "containerd.toml"
        config.write_text(
            _CONTAINERD.format(
                directory=directory,
                socket=_SOCKET,
                unused=json.dumps(_UNUSED_PLUGINS),
                pause=PAUSE,
                cni_programs=_CNI_PROGRAMS,
            ),
            encoding="utf-8",
        )
        return config

    def _kubelet_command(self) -> list[str]:
        plane, directory, plan = self._place.plane, self._directory, self._place.switch.addresses
        serving = plane.authority.server(
            f"kubelet-{self.name}", addresses=[self.address], names=[self.name], group="system:nodes"
        )
        (directory / "resolv.conf").write_text(f"nameserver {plan.switch}\n", encoding="utf-8")
        config = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": self.address,
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(plane.authority.certificate)},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": str(serving.certificate),
            "tlsPrivateKeyFile": str(serving.key),
            "containerRuntimeEndpoint": f"unix://{_SOCKET}",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self._cgroup}",
            # The nodes share one machine's cores. Limits on top of that make Ray miss its own start-up deadlines.
            "cpuCFSQuota": False,
            "failCgroupV1": False,
            "failSwapOn": False,
            "oomScoreAdj": 0,
            "clusterDNS": [plan.switch],
            "clusterDomain": "cluster.local",
            "resolvConf": str(directory / "resolv.conf"),
            "enforceNodeAllocatable": ["pods"],
            "evictionHard": {
                "memory.available": "100Mi",
                "nodefs.available": "1%",
                "imagefs.available": "1%",
                "nodefs.inodesFree": "1%",
            },
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "nodeStatusUpdateFrequency": "4s",
            "kubeAPIQPS": 200,
            "kubeAPIBurst": 400,
            "podLogsDir": str(directory / "pod-logs"),
            "volumePluginDir": str(directory / "volume-plugins"),
        }
        return [
            str(self._place.programs.path("kubelet")),
            f"--config={_write_yaml(directory / 'kubelet.yaml', config)}",
            f"--kubeconfig={plane.identity(f'system:node:{self.name}', groups=['system:nodes'])}",
            f"--hostname-override={self.name}",
            f"--node-ip={self.address}",
            f"--root-dir={_KUBELET}",
        ]

    def _proxy_command(self) -> list[str]:
        config = {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "bindAddress": "0.0.0.0",
            "clientConnection": {"kubeconfig": str(self._place.plane.identity("system:kube-proxy"))},
            "clusterCIDR": self._place.switch.addresses.pods,
            "mode": "nftables",
            "hostnameOverride": self.name,
            "oomScoreAdj": 0,
            # These settings are the machine's, not the namespace's: leave them alone.
            "conntrack": {
                "maxPerCore": 0,
                "min": 0,
                "tcpEstablishedTimeout": "0s",
                "tcpCloseWaitTimeout": "0s",
            },
            "nodePortAddresses": ["primary"],
        }
        return [
            str(self._place.programs.path("kube-proxy")),
            f"--config={_write_yaml(self._directory / 'kube-proxy.yaml', config)}",
        ]


_CONTAINERD = """\
version = 2
root = "{directory}/containerd"
state = "/run/containerd/state"
disabled_plugins = {unused}
[grpc]
  address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{cni_programs}"
    conf_dir = "{directory}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      base_runtime_spec = "{directory}/container.json"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
"""


def _container_defaults(mounted: Mapping[Path, Path]) -> dict[str, Any]:
    """What a container is where its pod says nothing: the runtime's own defaults, with this machine's programs."""
    said = subprocess.run(["ctr", "oci", "spec"], check=True, capture_output=True, text=True).stdout
    defaults: dict[str, Any] = json.loads(said)
    defaults["mounts"] += [
        {"destination": str(place), "type": "bind", "source": str(path), "options": ["rbind", "ro", "nosuid"]}
        for place, path in mounted.items()
    ]
    # Without limits of its own a container has its runtime's, as on nodes that systemd set up.
    defaults["process"].pop("rlimits", None)
    return defaults


def _write_yaml(path: Path, content: Mapping[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(dict(content)), encoding="utf-8")
    return path


def _open_pipe(pipe: Path) -> bool:
    """Let the reader of `pipe` go on; False while nobody reads."""
    try:
        os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
    except OSError:
        return False
    return True
