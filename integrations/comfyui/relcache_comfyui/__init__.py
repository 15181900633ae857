"""A node that lets the diffusion transformers of ComfyUI skip work."""

from __future__ import annotations

from .node import Relcache

NODE_CLASS_MAPPINGS = {"Relcache": Relcache}
NODE_DISPLAY_NAME_MAPPINGS = {"Relcache": "relcache"}
