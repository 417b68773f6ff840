"""The definition in the chart is the generated one."""

from __future__ import annotations

from pathlib import Path

NAME = "ireko.dev_compressionruns.yaml"


def test_the_chart_carries_the_generated_definition(chart: Path) -> None:
    generated = chart.parents[1] / "crds" / NAME

    assert (chart / "files" / NAME).read_bytes() == generated.read_bytes(), "run `make generate`"


def test_the_template_finds_the_one_place_for_its_annotations(chart: Path) -> None:
    """It inserts them after the only `metadata:` that stands at the left margin."""
    assert (chart / "files" / NAME).read_text(encoding="utf-8").count("\nmetadata:\n") == 1
