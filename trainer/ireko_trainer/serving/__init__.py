"""What ships to devices: a verified bundle, and the MLflow model that carries it."""

from __future__ import annotations

from ireko_trainer.serving.bundle import Bundle, BundledFile, verify_bundle, write_bundle
from ireko_trainer.serving.logged import TAG_BUNDLE_SHA256, TAG_TARGET, log_member

__all__ = [
    "TAG_BUNDLE_SHA256",
    "TAG_TARGET",
    "Bundle",
    "BundledFile",
    "log_member",
    "verify_bundle",
    "write_bundle",
]
