"""The operator as a process: what wakes the reconcile, who may write, and how the process says that it is well."""
