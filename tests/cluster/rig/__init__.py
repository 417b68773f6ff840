"""A real Kubernetes on one machine, without Docker: what the tests under `tests/cluster` run against.

Two tiers. The API tier is etcd and kube-apiserver (and the controllers, where asked) on loopback: no root, ready
in seconds. The node tier adds nodes, each in network, mount, PID and host-name namespaces of its own, that run
real pods. `python -m rig --help` is the same rig for a person.
"""
