"""Seconds and bytes: methods and peers on models and pipelines."""
