"""Sample with SGLang's own FLUX.1 on a CPU, small and with random weights, as its denoising stage calls it.

Set up as in `try_on_cpu.py`, then: python integrations/sglang/try_native_on_cpu.py
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

STEPS, FULL = 40, 12


class Arguments(SimpleNamespace):
    """SGLang's server arguments as far as they are read; all others are None."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)


def build() -> Any:
    """Return SGLang's FLUX.1 with 2 + 2 blocks, in a process of its own."""
    one = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29611", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    os.environ.update(one)
    from sglang.multimodal_gen.configs.models.dits.flux import FluxArchConfig, FluxConfig
    from sglang.multimodal_gen.runtime.distributed import parallel_state
    from sglang.multimodal_gen.runtime.models.dits.flux import FluxTransformer2DModel
    from sglang.multimodal_gen.runtime.server_args import server_args

    parallel_state.init_distributed_environment(world_size=1, rank=0, local_rank=0, distributed_init_method="env://")
    parallel_state.initialize_model_parallel(sequence_parallel_degree=1)
    degrees = dict.fromkeys(("kv_gather_degree", "ulysses_degree", "ring_degree", "sp_degree", "tp_size"), 1)
    server_args.set_global_server_args(Arguments(attention_backend="torch_sdpa", **degrees))
    config = FluxArchConfig(
        num_layers=2, num_single_layers=2, attention_head_dim=64, num_attention_heads=2, joint_attention_dim=32,
        pooled_projection_dim=16, in_channels=16, axes_dims_rope=(16, 24, 24),
    )  # fmt: skip
    model = FluxTransformer2DModel(FluxConfig(arch_config=config), hf_config={}).float().eval().requires_grad_(False)
    torch.manual_seed(0)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, 0, 0.05) if weight.ndim > 1 else torch.nn.init.zeros_(weight)
    return model


def sample(stage: Any, steps: int) -> Tensor:
    """Sample with guidance: a call for each prompt in each step, the positive one first."""
    from sglang.multimodal_gen.runtime.managers.forward_context import set_forward_context

    generator = torch.Generator().manual_seed(1)
    x, *prompts = (torch.randn(1, *shape, generator=generator) for shape in ((16, 16), (6, 32), (6, 32)))
    places = torch.zeros(6 + 16, 3)
    places[6:, 1], places[6:, 2] = torch.arange(16) // 4, torch.arange(16) % 4
    rotations = stage.transformer.rotary_emb(places)
    stage.scheduler.set_timesteps(steps)
    with torch.inference_mode():
        for index, time in enumerate(stage.scheduler.timesteps):
            noises = []
            for prompt in prompts:
                with set_forward_context(current_timestep=index, attn_metadata=None, forward_batch=None):
                    noises.append(
                        stage.transformer(
                            hidden_states=x,
                            encoder_hidden_states=prompt,
                            pooled_projections=prompt[:, 0, :16],
                            timestep=time.expand(1),
                            guidance=torch.tensor([3.5]),
                            freqs_cis=rotations,
                        )
                    )
            yes, no = noises
            x = stage.scheduler.step(model_output=no + 2 * (yes - no), timestep=time, sample=x, return_dict=False)[0]
    return x


def main() -> None:
    """Sample in full and with relcache, and print full steps and distances."""
    os.environ["RELCACHE_METHOD"] = f"auto:full_steps={FULL}"
    sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
    import absent
    import stand_ins

    absent.replace("torchvision")
    from relcache_sglang import native

    stage = SimpleNamespace(
        transformer=build(), transformer_2=None, scheduler=stand_ins.Euler(), _cache_dit_enabled=False,
        server_args=SimpleNamespace(enable_breakable_cuda_graph=False),
    )  # fmt: skip
    full, few = sample(stage, STEPS), sample(stage, FULL)
    native.request_begins(None, stage, STEPS, None)
    near = sample(stage, STEPS)
    native.request_begins(None, stage, STEPS, None)
    again = sample(stage, STEPS)
    handle = stage.relcache_handle
    print(f"{handle}: full steps {handle.full_steps}, {len(handle.corrections)} corrections, notes {handle.notes}")
    for name, picture in (("with relcache", near), (f"{FULL} plain steps", few)):
        print(f"{name}: {float((picture - full).norm() / full.norm()):.4f} from full compute")
    print(f"the second request is the first one's: {torch.equal(again, near)}")


if __name__ == "__main__":
    main()
