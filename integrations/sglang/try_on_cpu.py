r"""Run SGLang's diffusers backend with the plugin on a CPU, as far as that goes without a server.

SGLang loads the plugin by its entry point and patches its own classes; then its execution stage makes a picture with
a pipeline of diffusers. torchvision, which has no build for a CPU in the package index, is replaced by empty modules.

    pip install --no-deps sglang==0.5.23 cache-dit compressed-tensors
    pip install torch triton diffusers transformers accelerate einops apache-tvm-ffi dill sentencepiece loguru gguf \
        imageio addict python-dateutil openai partial-json-parser ipython aiohttp msgspec orjson pybase64 pydantic \
        starlette pyzmq psutil requests tqdm
    pip install ./integrations/sglang
    RELCACHE_METHOD=auto:full_steps=14 python integrations/sglang/try_on_cpu.py FOLDER_OF_A_PIPELINE "a prompt"
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch


class Request(SimpleNamespace):
    """A request of SGLang's as far as the stage reads it; what it has not is None."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)


def main(folder: str, prompt: str) -> None:
    """Make a picture, and print the full steps."""
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("relcache").setLevel(logging.INFO)
    sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
    import absent

    absent.replace("torchvision")
    from sglang.multimodal_gen.runtime.platforms import plugins

    plugins.load_plugins()
    plugins.apply_plugin_hooks()
    from sglang.multimodal_gen.runtime.pipelines.diffusers_pipeline import DiffusersExecutionStage, DiffusersPipeline

    pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
    backend = DiffusersPipeline.__new__(DiffusersPipeline)
    backend._cache_dit_enabled = False
    pipe = backend._apply_cache_dit(pipe, SimpleNamespace(cache_dit_config=None))
    stage = DiffusersExecutionStage.__new__(DiffusersExecutionStage)
    stage.diffusers_pipe = pipe
    request = Request(
        prompt=prompt, num_inference_steps=50, seed=3, extra={}, generator_device="cpu", num_outputs_per_prompt=1
    )
    with torch.inference_mode():
        output = stage.forward(request, None).output
    print(f"a picture of {tuple(output.shape)}, full steps {pipe.relcache_handle.full_steps}")


if __name__ == "__main__":
    main(*sys.argv[1:])
