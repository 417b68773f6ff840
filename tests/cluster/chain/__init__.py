"""The whole product on real nodes: the chain from `helm install` to a loaded model, and what may happen on the way."""
