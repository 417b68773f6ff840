"""The chart starts the operator with options that it has, and leaves none out."""

from __future__ import annotations

import re
from pathlib import Path

import typer

from ireko_operator.cli import app

ELSEWHERE = {
    "--help",
    "--kubeconfig",  # a pod has its ServiceAccount
}


def _options() -> set[str]:
    command = typer.main.get_command(app).commands["operator"]  # type: ignore[attr-defined]
    return {
        option
        for parameter in command.params
        for option in [*parameter.opts, *parameter.secondary_opts]
        if option.startswith("--")
    }


def test_every_option_of_the_operator_has_its_value(chart: Path) -> None:
    template = (chart / "templates" / "deployment.yaml").read_text(encoding="utf-8")
    passed = set(re.findall(r"^ +- (--[a-z-]+)", template, re.MULTILINE))

    assert passed == _options() - ELSEWHERE
