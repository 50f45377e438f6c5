"""What a cluster gives, and how Kubeflow Pipelines is asked to run on it."""
