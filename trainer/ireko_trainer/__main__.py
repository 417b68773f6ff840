"""`python -m ireko_trainer REQUEST.json`: execute one run request."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

_SETTINGS = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
}
"""A trainer writes to a log, where progress bars are noise. Its workers import Torch, which takes longer than Ray Train
waits for them where the disk is cold. What the environment says already wins."""

_TALKATIVE = ("mlflow", "botocore", "aiobotocore")


def main() -> int:
    """Set up logging and run the request named on the command line."""
    if len(sys.argv) != 2:
        print("usage: python -m ireko_trainer REQUEST.json", file=sys.stderr)
        return 2
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for library in _TALKATIVE:
        logging.getLogger(library).setLevel(logging.WARNING)
    # Torch, transformers and MLflow take seconds to import: a wrong command line should not wait for them.
    from ireko_trainer.pipeline.run import run

    return run(Path(sys.argv[1]))


if __name__ == "__main__":
    sys.exit(main())
