"""The node "relcache" for ComfyUI; clone or copy this folder into `custom_nodes`."""

from .relcache_comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
