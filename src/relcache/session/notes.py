"""Notes of a request, for its report and as warnings."""

from relcache.session.branches import MOST_BRANCHES

NAME_LOOPS = "If several loops take turns, make each loop's calls within a handle.request() of its own"
NOTES = {
    "repeated": (
        "the transformer was called again within a step with the same conditioning, and nothing tells the two calls "
        "apart. Such calls are computed in full. To cache them, name their branches by the model's cache_context"
    ),
    "again": (
        "the transformer was called again at the same timestep with the same conditioning. It may be another request, "
        "a tile, a guidance branch or a second evaluation. Such calls are computed in full until the timestep goes "
        "back. Pass the loop's scheduler= to relcache.enable, or name guidance branches by cache_context. "
        f"{NAME_LOOPS}, or call handle.reset() between them"
    ),
    "jump": (
        "from one step to the next the sample moved about as far as to another noise. This step was counted as the "
        "first of a new request, and computed in full. If it is the same loop, call it within handle.request()"
    ),
    "short": (
        "every call seems to begin a request, and is computed in full. Either two loops take turns, or the timesteps "
        f"run the wrong way, or requests have one step. {NAME_LOOPS}, or call handle.reset() between them"
    ),
    "limit": (
        "another request took its turn, and the cache of this one was dropped to stay within the memory limit. Run "
        "requests one after another, or pass a higher memory_limit"
    ),
    "number": "the request has more steps than num_inference_steps. Pass the true number to relcache.enable",
    "beyond": (
        "the loop has more steps than its scheduler showed at the beginning. The extra steps are computed in full, "
        "beyond the budget"
    ),
    "offload": "offload='cpu' has no effect: features are already in the host's memory",
    "branches": (
        f"the conditioning changed more than {MOST_BRANCHES} times within a request. Each change seems to be a new "
        "guidance branch, and is computed in full. Pass the same conditioning tensors at each step"
    ),
}
NOT_FINITE = (
    "the model's own output was NaN or infinite at step {}, which was computed in full, so no forecast is the cause. "
    "Check the weights, the latents, the prompt's embeddings, and float16, which ends at 65504"
)
FORECAST_NOT_FINITE = (
    "the output was NaN or infinite at step {}, whose modules were forecast, and at no step before. Use bfloat16 or "
    "float32, or forecaster=relcache.Reuse(), which extrapolates nothing"
)
SILENT = {"offload", "beyond"}  # notes that appear in the report without a warning
ONCE = {"short"}  # notes that warn once for all requests
