"""The Kubernetes manifests, rendered as `kubectl apply -k` would and checked without a cluster."""
