"""The data plane of Ireko: one run request in, MLflow runs and a family of compressed models out."""
