"""The control plane of Ireko: the reconcile, the registry, the command line."""
