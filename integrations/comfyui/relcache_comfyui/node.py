"""The node: a model in, a model that skips work out."""

from __future__ import annotations

from typing import Any

from .sampling import FORECASTERS, Sampling

KEY = "relcache"


class Relcache:
    """Takes `full_steps` full steps in each sampling, forecasts the others, and corrects them."""

    CATEGORY = "advanced/model"
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "apply"
    DESCRIPTION = (
        "Computes only some of the sampler's steps in full, forecasts the others, and corrects them where the sampler "
        "is Euler. Fewer full steps are faster; 14 of 50 are hard to tell from all of them."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Return the node's inputs."""
        return {
            "required": {
                "model": ("MODEL",),
                "full_steps": ("INT", {"default": 14, "min": 2, "max": 1000}),
                "forecaster": (list(FORECASTERS),),
                "correction": ("BOOLEAN", {"default": True}),
            },
            "hidden": {"node": "UNIQUE_ID"},
        }

    def apply(
        self, model: Any, full_steps: int, forecaster: str, correction: bool, node: str | None = None
    ) -> tuple[Any]:
        """Return a copy of the model's patcher with relcache's wrappers. The model itself does not change."""
        copy = model.clone()
        sampling = Sampling(full_steps, forecaster, correction, node)
        wrappers = {
            "outer_sample": sampling.sample,
            "predict_noise": sampling.predict,
            "apply_model": sampling.call,
        }  # the values of ComfyUI's WrappersMP
        for place, wrapper in wrappers.items():
            copy.remove_wrappers_with_key(place, KEY)  # of a node before this one
            copy.add_wrapper_with_key(place, KEY, wrapper)
        return (copy,)
