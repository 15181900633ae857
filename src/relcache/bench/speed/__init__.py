"""The time and memory of methods and peers on models and pipelines."""
