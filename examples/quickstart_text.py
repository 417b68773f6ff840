"""Write the English text that the quickstart distils on: Python's own language reference, as JSON lines.

Every Python installation carries it in `pydoc_data.topics`; nothing is downloaded.

    python examples/quickstart_text.py examples/quickstart-text.jsonl
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from pydoc_data.topics import topics


def sentences(text: str) -> list[str]:
    """Split reStructuredText-like prose into sentences, leaving out headings, grammar and code."""
    found: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text):
        if (
            paragraph.startswith("   ")
            or "::=" in paragraph
            or re.search(r"^[*=\-~]{4,}$", paragraph, re.MULTILINE)
        ):
            continue
        flat = " ".join(paragraph.split())
        found += [s for s in re.split(r"(?<=[.!?:])\s+(?=[A-Z\"])", flat) if 24 <= len(s) <= 400]
    return found


def main(path: Path) -> None:
    """Write one JSON object with the field `text` per distinct sentence."""
    distinct = dict.fromkeys(s for name in sorted(topics) for s in sentences(topics[name]))
    lines = [json.dumps({"text": sentence}) + "\n" for sentence in distinct]
    path.write_text("".join(lines), encoding="utf-8")
    print(f"{path}: {len(lines)} sentences", file=sys.stderr)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
