"""The benchmarks. This layer loads pipelines of diffusers; nothing below it does."""
