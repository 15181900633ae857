"""What is told of a request, in its report and as a warning, where something was not to be told apart."""

from relcache.session.branches import MOST_BRANCHES

HOW_TO_NAME = "call each within a context of its own, handle.request(), or call handle.reset() between them"
NOTES = {
    "repeated": (
        "the transformer was called again within a step with the same conditioning, and nothing tells the two calls "
        "apart, as with guidance that changes something inside: such calls are computed in full"
    ),
    "again": (
        "the transformer was called again at the same timestep with the same conditioning, and nothing tells whether "
        "that is another request, a tile, a guidance branch or a second evaluation: such calls are computed in full "
        "until the timestep goes back. Pass the loop's scheduler= to relcache.enable, or use cache_context for "
        f"branches; of several loops, {HOW_TO_NAME}"
    ),
    "jump": (
        "the sample moved about as far from one step to the next as another noise would lie, so that step was taken "
        "for the first of another request, and computed in full. If one loop goes on there, call it within "
        "handle.request()"
    ),
    "short": (
        "every call looks like the first of a request, and is computed in full: two loops take turns, the timesteps "
        f"run the wrong way, or requests have one step. Of several loops, {HOW_TO_NAME}"
    ),
    "limit": (
        "another request took its turn, and under the memory limit what was cached for this one was dropped: where "
        "they take turns, little or nothing is cached. Run them one after another, or give a higher memory_limit"
    ),
    "number": "the request goes on after the number of steps that was given as num_inference_steps",
    "beyond": (
        "the loop goes on after the number of steps that its scheduler showed at the beginning; these steps are "
        "computed in full, beyond the budget"
    ),
    "offload": "offload='cpu' has no effect: features are already in the host's memory",
    "branches": (
        f"the conditioning changed more than {MOST_BRANCHES} times within a request; each change is computed in full, "
        "because it looks like a new guidance branch"
    ),
}
NOT_FINITE = (
    "the model's own output was NaN or infinite at step {}, which was computed in full: look for the cause in the "
    "weights, the latents and the prompt's embeddings, or in float16, which ends at 65504; it is not in a forecast"
)
FORECAST_NOT_FINITE = (
    "the output was NaN or infinite at step {}, whose modules were forecast, and at no step before: use bfloat16 or "
    "float32, or forecaster=relcache.Reuse(), which extrapolates nothing"
)
SILENT = {"offload", "beyond"}  # notes of the report that are no warnings
ONCE = {"short"}  # those that each request of a loop has, and that are warned of once
