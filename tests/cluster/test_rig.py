"""The parts of the rig that need no cluster: names, images, caches, and what it says where it cannot run."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from rig import binaries, machine
from rig.binaries import HELM, KUBERAY, KUBERNETES, find_or_build
from rig.cache import made_once
from rig.dns import Records
from rig.dockerfile import read_stages
from rig.errors import RigError, UnavailableError
from rig.processes import Process, wait_until


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "ireko" / "cluster"


# --- names -------------------------------------------------------------------------------------


def endpoint(address: str, *, host: str | None = None, ready: bool = True) -> dict[str, Any]:
    return {"addresses": [address], "hostname": host, "conditions": {"ready": ready}}


@pytest.fixture
def records() -> Records:
    known = Records()
    known.services = {
        ("lab", "web"): {"spec": {"clusterIP": "198.18.128.7"}},
        ("lab", "gang"): {"spec": {"clusterIP": "None"}},
    }
    slices = [endpoint("198.18.64.2", host="gang-0"), endpoint("198.18.65.2", ready=False)]
    for service, endpoints in (("gang", slices), ("web", [endpoint("198.18.64.9")])):
        labels = {"kubernetes.io/service-name": service}
        known.slices["lab", f"{service}-abc"] = {"metadata": {"labels": labels}, "endpoints": endpoints}
    return known


@pytest.mark.parametrize(
    ("name", "addresses"),
    [
        ("web.lab.svc.cluster.local", ["198.18.128.7"]),
        ("gang.lab.svc.cluster.local", ["198.18.64.2"]),
        ("gang-0.gang.lab.svc.cluster.local", ["198.18.64.2"]),
        ("198-18-64-2.lab.pod.cluster.local", ["198.18.64.2"]),
        ("gang-1.gang.lab.svc.cluster.local", None),
        ("web.other.svc.cluster.local", None),
        ("a.b.lab.pod.cluster.local", None),
        ("nonsense.lab.pod.cluster.local", None),
        ("web.lab.svc", None),
        ("example.org", None),
        ("cluster.local", None),
    ],
)
def test_a_name_is_answered_as_cluster_dns_does(
    records: Records, name: str, addresses: list[str] | None
) -> None:
    assert records.addresses(name) == addresses


# --- programs ----------------------------------------------------------------------------------


def test_versions_come_from_the_pinned_modules() -> None:
    assert [module.version for module in (KUBERNETES, KUBERAY, HELM)] == ["v1.35.4", "v1.6.1", "v4.2.4"]


def test_a_users_own_programs_go_before_a_build(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "helm").touch()
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    assert find_or_build(HELM).path("helm") == tmp_path / "helm"
    assert not cache.exists()


def test_a_program_that_nobody_builds_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "helm").touch()
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    with pytest.raises(RigError, match="helm builds helm, not tiller"):
        find_or_build(HELM).path("tiller")


def test_sources_that_cannot_be_had_make_the_tier_unavailable_with_a_remedy(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    monkeypatch.setenv("GOMODCACHE", str(tmp_path / "modules"))
    monkeypatch.setenv("GOPROXY", "off")
    with pytest.raises(UnavailableError, match=r"connect to a Go module proxy .*KUBEBUILDER_ASSETS"):
        find_or_build(HELM)
    assert [path for path in cache.iterdir() if path.suffix != ".lock"] == []


def test_a_build_that_fails_leaves_nothing_and_the_next_one_starts_anew(cache: Path) -> None:
    def fails(folder: Path) -> None:
        (folder / "half").touch()
        raise RigError("no space")

    with pytest.raises(RigError, match="no space"):
        made_once("thing", fails)
    assert list(made_once("thing", lambda folder: (folder / "whole").touch()).iterdir()) == [
        cache / "thing" / "whole"
    ]


def test_what_was_made_once_is_not_made_again(cache: Path) -> None:
    made = [made_once("thing", lambda folder: (folder / "whole").touch()) for _ in range(2)]
    assert made == [cache / "thing"] * 2
    assert made_once("thing", lambda _: pytest.fail("made again")) == cache / "thing"


# --- images ------------------------------------------------------------------------------------


def test_the_images_start_as_the_dockerfile_says(repository: Path) -> None:
    stages = read_stages(repository / "Dockerfile")
    operator, trainer = stages["operator"], stages["trainer"]
    assert operator.entrypoint == ("ireko",)
    assert trainer.entrypoint == ()
    assert operator.user == trainer.user == "10001:10001"
    assert dict(operator.environment)["HOME"] == "/tmp"


def test_a_stage_has_what_the_stage_below_it_set_unless_it_says_otherwise(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(
        'FROM debian AS a\n# ENV X=9\nENV X=1 \\\n  Y="two words"\nUSER 1\nENTRYPOINT ["p"]\nCMD ["q"]\n'
        'FROM a AS b\nUSER 2\nENTRYPOINT ["r"]\n',
        encoding="utf-8",
    )
    b = read_stages(tmp_path / "Dockerfile")["b"].as_image_config()
    assert b == {
        "Env": ["X=1", "Y=two words"],
        "User": "2",
        "WorkingDir": "/",
        "Entrypoint": ["r"],
        "Cmd": [],
    }


# --- processes ---------------------------------------------------------------------------------


def test_a_process_that_ends_while_it_is_waited_for_is_told_with_its_last_words(tmp_path: Path) -> None:
    process = Process(
        name="liar", command=["sh", "-c", "echo port is taken; exit 3"], log=tmp_path / "liar.log"
    )
    with pytest.raises(RigError, match=r"liar ended while waiting for godot(.|\n)*port is taken"):
        wait_until(lambda: False, what="godot", timeout=30, watched=[process])


def test_a_process_that_ignores_a_request_to_end_is_killed_with_its_children(tmp_path: Path) -> None:
    script = "trap '' TERM; sleep 600 & echo $!; wait; wait"
    process = Process(name="stubborn", command=["sh", "-c", script], log=tmp_path / "stubborn.log")
    wait_until(lambda: process.tail().strip().isdigit(), what="its child", timeout=30, watched=[process])
    child = int(process.tail())
    process.stop(grace=0.2)
    assert not process.running
    wait_until(lambda: not Path(f"/proc/{child}/exe").exists(), what="the child to end", timeout=30)


def test_a_process_ends_with_the_program_that_started_it(tmp_path: Path) -> None:
    """A killed test session must not leave servers behind."""
    log = tmp_path / "sleep.log"
    program = (
        "import os, signal, pathlib; from rig.processes import Process;"
        f"p = Process(name='s', command=['sh', '-c', 'echo $$; exec sleep 600'], log=pathlib.Path({str(log)!r}));"
        "import time; time.sleep(1); os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {"PYTHONPATH": str(Path(__file__).parent)}
    starter = Process(
        name="starter",
        command=[sys.executable, "-c", program],
        log=tmp_path / "starter.log",
        environment=environment,
    )
    wait_until(lambda: not starter.running, what="the starter to die", timeout=60)
    assert log.exists(), starter.tail()
    pid = int(log.read_text(encoding="utf-8"))
    wait_until(lambda: not Path(f"/proc/{pid}/exe").exists(), what="its process to die", timeout=30)


# --- machines ----------------------------------------------------------------------------------


def test_without_root_the_node_tier_says_what_would_make_it_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(UnavailableError, match=r"nodes need root.*sudo make test"):
        machine.require_node_tier()


def test_missing_packages_are_named_where_nothing_can_install_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnavailableError, match=r"apt-get install conntrack containerd .*runc"):
        machine.require_node_tier()


def test_what_is_missing_of_a_users_own_programs_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    assert binaries.given_programs(HELM) is None
    assert f"KUBEBUILDER_ASSETS={tmp_path} has no helm" in capsys.readouterr().err
