"""ChronoEdit (NVIDIA, arXiv 2510.04290): Wan 2.1, which makes an edit as a short video."""

from dataclasses import replace

from relcache.models.families.wan import WAN

CHRONOEDIT = replace(WAN, class_name="ChronoEditTransformer3DModel", pipelines=())
