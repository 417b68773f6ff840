"""The edge to Kubernetes: a client that writes, a cache that watches fill, and the events for people."""
