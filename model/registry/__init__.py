"""The model registry: the only importer of mlflow."""
