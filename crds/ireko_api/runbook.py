"""The runbook, in Markdown, made from the reasons: what each means, where it comes from and what to do.

Alerts and conditions name a reason; the reader of either finds it here under an anchor of its own, the reason in
lower case.
"""

from __future__ import annotations

from collections.abc import Iterator

from ireko_api.reasons import ConditionType, Reason
from ireko_api.spec import KIND

_INTRODUCTION = f"""\
# Runbook

What the conditions of a {KIND} say, and what to do. This page is generated from `crds/ireko_api/reasons.py`.

```console
$ kubectl get crun NAME -o wide                      # phase, progress, reason
$ kubectl describe crun NAME                         # conditions with their sentences, events, attempts
$ kubectl logs -l ireko.dev/run=NAME --all-containers --tail=50
```

Look at the first condition that is not `True`. Its `reason` is one of the entries below; its `message` adds the
particulars: which object, which field, what Kubernetes, KubeRay, Kueue or MLflow said. A condition clears by
itself once its trouble is mended.
"""

_TYPES = """\
## Conditions

In the order in which they come true. `Admitted` and `ClusterReady` exist on clusters only.
"""


def markdown() -> str:
    """The whole page."""
    return "\n".join([_INTRODUCTION, _TYPES, *_types(), "", "## Reasons", "", *_index(), "", *_entries()])


def anchor(reason: Reason) -> str:
    """The anchor of a reason's entry: what Markdown renderers make of its heading."""
    return reason.value.lower()


def types_of(reason: Reason) -> tuple[ConditionType, ...]:
    """The conditions that have this reason, as its sentence says in front."""
    named = reason.sentence.partition(":")[0].split(", ")
    return tuple(ConditionType(name) for name in named)


def _types() -> Iterator[str]:
    yield "| Condition | Meaning | Reasons |"
    yield "|---|---|---|"
    for kind in ConditionType:
        links = ", ".join(f"[{reason}](#{anchor(reason)})" for reason in Reason if kind in types_of(reason))
        yield f"| `{kind}` | {kind.sentence} | {links} |"


def _index() -> Iterator[str]:
    yield ", ".join(f"[{reason}](#{anchor(reason)})" for reason in sorted(Reason)) + "."


def _entries() -> Iterator[str]:
    for reason in Reason:
        meaning = reason.sentence.partition(": ")[2]
        kinds = ", ".join(f"`{kind}`" for kind in types_of(reason))
        yield f"### {reason}"
        yield ""
        yield f"Of {kinds}."
        yield ""
        yield f"* **Meaning**: {meaning[0].upper()}{meaning[1:]}"
        yield f"* **Cause**: {reason.cause}"
        yield f"* **Remedy**: {reason.remedy}"
        yield ""
