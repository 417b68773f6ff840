"""The reconcile: observe, decide what to do next, do it. The same on a laptop and on a cluster."""
