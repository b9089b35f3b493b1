"""The pipeline in a Kubeflow cluster: how its tasks run there, and the client that submits and schedules it."""
