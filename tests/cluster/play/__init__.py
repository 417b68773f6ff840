"""Plays everything around the reconcile that a test does not run for real: watches, KubeRay and the trainer."""
