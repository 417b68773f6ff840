"""Alerts, dashboard and their page ask for what the operator really exports, and every alert has its entry."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from promql import SCRAPED, Exported, grouped, selectors, unanswered

from ireko_operator.kube.keys import Kind
from ireko_operator.process.backlog import Depth
from ireko_operator.process.metrics import Metrics, State

CHART = Path(__file__).parents[3] / "charts" / "ireko"
PAGE = CHART.parents[1] / "docs" / "monitoring.md"


def _alerts() -> list[dict[str, Any]]:
    loaded = yaml.safe_load((CHART / "files" / "alerts.yaml").read_text(encoding="utf-8"))
    alerts: list[dict[str, Any]] = loaded["alerts"]
    return alerts


def _dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((CHART / "files" / "dashboard.json").read_text(encoding="utf-8"))
    return loaded


ALERTS = {alert["alert"]: alert for alert in _alerts()}
PANELS = {panel["title"]: panel for panel in _dashboard()["panels"] if panel["type"] != "row"}
QUERIES = {
    f"{title} {target['refId']}": target for title, panel in PANELS.items() for target in panel["targets"]
}


@pytest.fixture(scope="module")
def registry() -> Metrics:
    metrics = Metrics()
    depth = Depth(due=0, later=0, running=0, oldest_due=0.0, longest_run=0.0)
    metrics.registry.register(
        State(
            depth=lambda: depth,
            phases=dict,
            watched=lambda: dict.fromkeys(Kind, 0.0),
            leading=lambda: True,
        )
    )
    return metrics


@pytest.fixture(scope="module")
def exported(registry: Metrics) -> Exported:
    series: dict[str, list[dict[str, str]]] = {}
    for family in registry.registry.collect():
        for sample in family.samples:
            series.setdefault(sample.name, []).append(dict(sample.labels))
    return series


@pytest.mark.parametrize("alert", ALERTS.values(), ids=ALERTS)
def test_an_alert_asks_for_what_is_exported(alert: dict[str, Any], exported: Exported) -> None:
    asked = selectors(alert["expr"])

    assert asked
    assert [reason for selector in asked if (reason := unanswered(selector, exported))] == []
    assert grouped(alert["expr"]) <= SCRAPED | {"resource"}


@pytest.mark.parametrize("alert", ALERTS.values(), ids=ALERTS)
def test_an_alert_uses_only_labels_that_its_expression_keeps(alert: dict[str, Any]) -> None:
    used = set(re.findall(r"\$labels\.(\w+)", json.dumps(alert["annotations"])))

    assert used <= grouped(alert["expr"])


@pytest.mark.parametrize("alert", ALERTS.values(), ids=ALERTS)
def test_an_alert_names_its_entry_in_the_page(alert: dict[str, Any]) -> None:
    page, anchor = alert["annotations"]["runbook_url"].split("#")
    headings = re.findall(r"^#+ (.+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)

    assert page == "docs/monitoring.md"
    assert alert["alert"] in headings
    assert anchor == alert["alert"].lower()


def test_every_alert_fires_when_it_should_and_rests_when_it_should_not(tmp_path: Path) -> None:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("alerts not played: install promtool, which Debian has in its package prometheus")
    silent = [{key: value for key, value in alert.items() if key != "annotations"} for alert in _alerts()]
    rules = {"groups": [{"name": "ireko", "rules": silent}]}
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules), encoding="utf-8")
    shutil.copy(Path(__file__).parent / "alerts.promtool.yaml", tmp_path)

    played = subprocess.run(
        [program, "test", "rules", tmp_path / "alerts.promtool.yaml"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert played.returncode == 0, played.stdout + played.stderr


def test_every_alert_is_played_both_ways() -> None:
    played = yaml.safe_load((Path(__file__).parent / "alerts.promtool.yaml").read_text(encoding="utf-8"))
    checks = [check for test in played["tests"] for check in test["alert_rule_test"]]

    assert {check["alertname"] for check in checks if check.get("exp_alerts")} == set(ALERTS)
    assert {check["alertname"] for check in checks if not check.get("exp_alerts")} == set(ALERTS)


def test_no_entry_is_about_an_alert_that_is_gone() -> None:
    headings = re.findall(r"^#+ (Ireko[A-Z]\w+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)

    assert headings == list(ALERTS)


@pytest.mark.parametrize("alert", ALERTS.values(), ids=ALERTS)
def test_an_alert_says_how_bad_it_is_and_what_it_means(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in {"critical", "warning", "info"}
    assert alert["annotations"]["summary"].endswith(".")
    assert alert["annotations"]["description"].endswith(".")


def test_the_schema_knows_every_alert_by_name(schema: dict[str, Any]) -> None:
    known = schema["properties"]["prometheusRule"]["properties"]["disabled"]["items"]["enum"]

    assert known == list(ALERTS)


@pytest.mark.parametrize("target", QUERIES.values(), ids=QUERIES)
def test_a_panel_asks_for_what_is_exported(target: dict[str, Any], exported: Exported) -> None:
    asked = selectors(target["expr"])

    assert asked
    assert [reason for selector in asked if (reason := unanswered(selector, exported))] == []
    legend = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
    assert legend <= grouped(target["expr"]) | SCRAPED


def test_every_panel_takes_the_chosen_data_source_and_place() -> None:
    dashboard = _dashboard()

    assert [variable["name"] for variable in dashboard["templating"]["list"]] == [
        "datasource",
        "namespace",
        "job",
    ]
    for target in QUERIES.values():
        assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert 'namespace=~"$namespace", job=~"$job"' in target["expr"]


def test_panels_have_numbers_of_their_own_and_do_not_overlap() -> None:
    panels = _dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (place["x"] + column, place["y"] + row)
            for column in range(place["w"])
            for row in range(place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells


def test_the_page_lists_every_metric_with_its_labels(registry: Metrics) -> None:
    """Names as Prometheus stores them, with the labels that the operator itself gives."""
    rows = re.findall(
        r"^\| `(ireko_\w+)` \| (\w+) \|([^|]*)\|", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )
    listed = {name: (kind, frozenset(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    real = {}
    for family in registry.registry.collect():
        if not family.name.startswith("ireko_"):
            continue
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        real[name] = (family.type, frozenset(labels))

    assert listed == real
