r"""Load the plugin into vLLM-Omni's own package on a CPU, and use its backend on stand-ins of vLLM-Omni's pipelines.

torchvision and torchaudio, which have no build for a CPU in the package index, are replaced by empty modules. A
pipeline of vLLM-Omni's own needs a GPU.

    pip install --no-deps vllm==0.30.0 vllm-omni==0.30.0 cache-dit
    pip install torch diffusers transformers aenum regex pydantic cbor2 psutil pyzmq openai-harmony openai pybase64 \
        cachetools msgspec cloudpickle uvloop py-cpuinfo prometheus-client fastapi partial-json-parser xgrammar \
        llguidance tiktoken loguru einops omegaconf prettytable pytest && pip uninstall flashinfer-python torchaudio
    pip install ./integrations/vllm-omni
    python integrations/vllm-omni/try_on_cpu.py
"""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> None:
    """Make a generation with FLUX's stand-in and Wan's, and print the full steps."""
    sys.path += [str(Path(__file__).parent / "tests"), str(Path(__file__).parents[1] / "shared")]
    import absent

    absent.replace("torchvision", "torchaudio")
    from vllm_omni.diffusion.cache import selector
    from vllm_omni.plugins import load_omni_general_plugins

    load_omni_general_plugins()
    import test_vllm_omni_backend as standins

    for kind in (standins.Pipeline, standins.WanPipeline):
        pipeline = standins.pipeline_of(kind)
        backend = selector.get_cache_backend("relcache", {"method": "auto:full_steps=12"})
        backend.enable(pipeline)
        standins.made(backend, pipeline, 40)
        print(f"{kind.__name__}: {type(backend).__mro__[1]}, full steps {backend.full_steps}")


if __name__ == "__main__":
    main()
