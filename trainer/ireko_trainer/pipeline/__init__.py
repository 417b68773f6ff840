"""The explicit list of stages, each a pure step from input artifacts to output artifacts keyed by its inputs."""
