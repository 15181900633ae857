"""A stand-in that calls models and wrappers in the order, with the arguments and with the batches of ComfyUI.

Written from ComfyUI's interfaces, without its code. The blocks are those of diffusers, in models with ComfyUI's names.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.models.transformers.transformer_flux import FluxSingleTransformerBlock, FluxTransformerBlock
from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from torch import Tensor, nn

WIDTH, HEADS, TOKENS = 16, 2, 8


class Interrupted(BaseException):
    """ComfyUI's interrupt, which is no Exception."""


class Executor:
    """Calls the wrappers of one place, the first one outermost, and then the original."""

    def __init__(self, original: Callable[..., Any], owner: Any, wrappers: list[Any], index: int = 0):
        self.original, self.class_obj, self.wrappers, self.idx = original, owner, wrappers, index

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return Executor(self.original, self.class_obj, self.wrappers, self.idx + 1).execute(*args, **kwargs)

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        if self.idx == len(self.wrappers):
            return self.original(*args, **kwargs)
        return self.wrappers[self.idx](self, *args, **kwargs)


def wrapped(place: str, options: dict[str, Any], original: Callable[..., Any], owner: Any) -> Executor:
    by_key = options.get("wrappers", {}).get(place, {})
    return Executor(original, owner, [wrapper for wrappers in by_key.values() for wrapper in wrappers])


# Models


class Double(nn.Module):
    """A block of two streams, which overwrites the image's."""

    def __init__(self) -> None:
        super().__init__()
        self.block = FluxTransformerBlock(WIDTH, HEADS, WIDTH // HEADS)

    def forward(
        self, img: Tensor, txt: Tensor, vec: Tensor, pe: Any, attn_mask: Any = None, transformer_options: Any = None
    ) -> tuple[Tensor, Tensor]:
        txt, new = self.block(img, txt, vec, pe)
        img += new - img
        return img, txt


class Single(nn.Module):
    """A block of text and image in one stream."""

    def __init__(self) -> None:
        super().__init__()
        self.block = FluxSingleTransformerBlock(WIDTH, HEADS, WIDTH // HEADS)

    def forward(
        self, x: Tensor, vec: Tensor, pe: Any, attn_mask: Any = None, transformer_options: Any = None
    ) -> Tensor:
        text, image = self.block(x[:, TOKENS:], x[:, :TOKENS], vec, pe)
        return torch.cat([text, image], 1)


class Flux(nn.Module):
    """FLUX as ComfyUI calls it; `control` has residuals that are added between the blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.img_in, self.txt_in, self.time_in = nn.Linear(4, WIDTH), nn.Linear(4, WIDTH), nn.Linear(4, WIDTH)
        self.double_blocks = nn.ModuleList(Double() for _ in range(2))
        self.single_blocks = nn.ModuleList(Single() for _ in range(2))
        self.final_layer = nn.Linear(WIDTH, 4)

    def forward(
        self, x: Tensor, timestep: Tensor, context: Tensor, y: Any = None, guidance: Any = None,
        ref_latents: Any = None, control: Any = None, transformer_options: Any = None, **kwargs: Any,
    ) -> Tensor:  # fmt: skip
        options = transformer_options or {}
        return wrapped("diffusion_model", options, self._forward, self).execute(
            x, timestep, context, y, guidance, ref_latents, control, options, **kwargs
        )

    def _forward(
        self, x: Tensor, timestep: Tensor, context: Tensor, y: Any, guidance: Any, ref_latents: Any, control: Any,
        options: Any, **kwargs: Any,
    ) -> Tensor:  # fmt: skip
        img, txt = self.img_in(x.flatten(2).transpose(1, 2)), self.txt_in(context)
        times = timestep[:, None] * torch.tensor([1.0, 2.0, 3.0, 4.0])
        vec, shape = self.time_in(times.cos()), x.shape
        for index, block in enumerate(self.double_blocks):
            img, txt = block(img=img, txt=txt, vec=vec, pe=None, attn_mask=None, transformer_options=options)
            if control is not None:
                img += control["input"][index]
        img = torch.cat([txt, img], 1)
        for block in self.single_blocks:
            img = block(img, vec=vec, pe=None, attn_mask=None, transformer_options=options)
        return self.final_layer(img[:, txt.shape[1] :]).transpose(1, 2).reshape(shape)


class WanBlock(nn.Module):
    """A block of one stream."""

    def __init__(self) -> None:
        super().__init__()
        self.block = WanTransformerBlock(WIDTH, 2 * WIDTH, HEADS, cross_attn_norm=True)

    def forward(
        self, x: Tensor, e: Tensor, freqs: Any = None, context: Any = None, context_img_len: Any = None,
        transformer_options: Any = None,
    ) -> Tensor:  # fmt: skip
        return self.block(x, context, e, None)


class WanModel(nn.Module):
    """Wan as ComfyUI calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.img_in, self.text_embedding, self.time_in = nn.Linear(4, WIDTH), nn.Linear(4, WIDTH), nn.Linear(4, WIDTH)
        self.blocks = nn.ModuleList(WanBlock() for _ in range(3))
        self.head = nn.Linear(WIDTH, 4)

    def forward(
        self, x: Tensor, timestep: Tensor, context: Tensor, clip_fea: Any = None, time_dim_concat: Any = None,
        transformer_options: Any = None, **kwargs: Any,
    ) -> Tensor:  # fmt: skip
        options = transformer_options or {}
        return wrapped("diffusion_model", options, self._forward, self).execute(
            x, timestep, context, clip_fea, time_dim_concat, options, **kwargs
        )

    def _forward(
        self, x: Tensor, timestep: Tensor, context: Tensor, clip_fea: Any, time_dim_concat: Any, options: Any,
        **kwargs: Any,
    ) -> Tensor:  # fmt: skip
        img, text = self.img_in(x.flatten(2).transpose(1, 2)), self.text_embedding(context)
        e = self.time_in((timestep[:, None] * torch.tensor([1.0, 2.0, 3.0, 4.0])).cos())[:, None].repeat(1, 6, 1)
        for block in self.blocks:
            img = block(img, e=e, freqs=None, context=text, context_img_len=None, transformer_options=options)
        return self.head(img).transpose(1, 2).reshape(x.shape)


def random_model(kind: type[nn.Module] = Flux, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind()
        for weight in model.parameters():
            nn.init.normal_(weight, 0, 0.3)
    return model.eval().requires_grad_(False)


class CONST:
    """Flow matching: the sample is (1 - sigma) times the picture plus sigma times noise."""

    def timestep(self, sigma: Tensor) -> Tensor:
        return sigma

    def calculate_denoised(self, sigma: Tensor, output: Tensor, x: Tensor) -> Tensor:
        return x - output * sigma.view(-1, 1, 1, 1)


class BaseModel(nn.Module):
    """Holds the diffusion model, and calls it with its timestep."""

    def __init__(self, diffusion_model: nn.Module):
        super().__init__()
        self.diffusion_model, self.model_sampling = diffusion_model, CONST()

    def apply_model(
        self, x: Tensor, t: Tensor, c_concat: Any = None, c_crossattn: Any = None, control: Any = None,
        transformer_options: Any = None, **kwargs: Any,
    ) -> Tensor:  # fmt: skip
        return wrapped("apply_model", transformer_options, self._apply_model, self).execute(
            x, t, c_concat, c_crossattn, control, transformer_options, **kwargs
        )

    def _apply_model(
        self, x: Tensor, t: Tensor, c_concat: Any, c_crossattn: Any, control: Any, transformer_options: Any,
        **kwargs: Any,
    ) -> Tensor:  # fmt: skip
        sigma, options = t, dict(transformer_options)
        t = self.model_sampling.timestep(t).float()
        output = self.diffusion_model(x, t, context=c_crossattn, control=control, transformer_options=options, **kwargs)
        return self.model_sampling.calculate_denoised(sigma, output.float(), x)


class Patcher:
    """ComfyUI's ModelPatcher: clones share the model, and copy the containers of wrappers."""

    def __init__(self, model: BaseModel, wrappers: dict[str, dict[str, list[Any]]] | None = None):
        self.model, self.wrappers = model, wrappers or {}

    def clone(self) -> Patcher:
        copies = {place: {key: list(own) for key, own in keys.items()} for place, keys in self.wrappers.items()}
        return Patcher(self.model, copies)

    def add_wrapper_with_key(self, place: str, key: str, wrapper: Any) -> None:
        self.wrappers.setdefault(place, {}).setdefault(key, []).append(wrapper)

    def remove_wrappers_with_key(self, place: str, key: str) -> None:
        self.wrappers.get(place, {}).pop(key, None)

    def get_model_object(self, name: str) -> Any:
        return getattr(self.model, name)


# Sampling


class Guider:
    """Samples with the conditions `conds`, positive first; `batches` says at which steps they go into one call."""

    def __init__(self, patcher: Patcher, scale: float = 3.0, batches: Callable[[int], bool] = lambda step: True):
        self.model_patcher, self.cfg, self._batches = patcher, scale, batches
        generator = torch.Generator().manual_seed(7)
        self.conds = [(uuid.uuid4(), torch.randn(1, TOKENS, 4, generator=generator)) for _ in range(2)]
        self.control: Any = None
        self.calls = 0

    def sample(self, noise: Tensor, sampler: Any, sigmas: Tensor, mask: Tensor | None = None) -> Tensor:
        self.model_options = {"transformer_options": {"wrappers": self.model_patcher.wrappers}}
        with torch.inference_mode():
            executor = wrapped("outer_sample", self.model_options["transformer_options"], self.outer_sample, self)
            return executor.execute(noise, torch.zeros_like(noise), sampler, sigmas, mask, None, True, 0)

    def outer_sample(
        self,
        noise: Tensor,
        latent: Tensor,
        sampler: Any,
        sigmas: Tensor,
        mask: Any,
        callback: Any,
        quiet: bool,
        seed: int,
    ) -> Tensor:
        self._step, self._sigmas = -1, sigmas
        self.model_options["transformer_options"]["sample_sigmas"] = sigmas
        return sampler.sampler_function(self._model(mask, latent, noise), noise * sigmas[0], sigmas)

    def _model(self, mask: Any, latent: Tensor, noise: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        def model(x: Tensor, sigma: Tensor) -> Tensor:
            self._step += 1
            if mask is not None:
                x = x * mask + (1 - mask) * (latent * (1 - sigma[0]) + noise * sigma[0])
            options = self.model_options["transformer_options"]
            clean = wrapped("predict_noise", options, self.predict_noise, self).execute(x, sigma, self.model_options, 0)
            return clean if mask is None else clean * mask + latent * (1 - mask)

        return model

    def predict_noise(self, x: Tensor, sigma: Tensor, model_options: Any, seed: int) -> Tensor:
        kinds = [0, 1] if self.cfg != 1 else [0]
        chunks = [kinds[::-1]] if self._batches(self._step) else [[kind] for kind in kinds]
        clean: dict[int, Tensor] = {}
        for chunk in chunks:
            self.calls += 1
            options = {
                **model_options["transformer_options"],
                "cond_or_uncond": chunk,
                "uuids": [self.conds[kind][0] for kind in chunk],
                "sigmas": sigma,
            }
            context = torch.cat([self.conds[kind][1].expand(len(x), -1, -1) for kind in chunk])
            own = self.model_patcher.model.apply_model(
                torch.cat([x] * len(chunk)), torch.cat([sigma] * len(chunk)), c_crossattn=context, control=self.control,
                transformer_options=options,
            )  # fmt: skip
            clean |= dict(zip(chunk, own.chunk(len(chunk)), strict=True))
        return clean[0] if len(kinds) == 1 else clean[1] + (clean[0] - clean[1]) * self.cfg


def sample_euler(model: Any, x: Tensor, sigmas: Tensor) -> Tensor:
    for sigma, after in pairwise(sigmas):
        clean = model(x, sigma.expand(len(x)))
        x = x + (x - clean) / sigma * (after - sigma)
    return x


def sample_dpmpp_2m(model: Any, x: Tensor, sigmas: Tensor) -> Tensor:
    """A sampler of two steps; what matters is that it remembers the last prediction."""
    old = None
    for sigma, after in pairwise(sigmas):
        clean = model(x, sigma.expand(len(x)))
        mean = clean if old is None else 1.5 * clean - 0.5 * old
        x, old = after / sigma * x + (1 - after / sigma) * mean, clean
    return x


def sample_heun(model: Any, x: Tensor, sigmas: Tensor) -> Tensor:
    for sigma, after in pairwise(sigmas):
        slope = (x - model(x, sigma.expand(len(x)))) / sigma
        there = x + slope * (after - sigma)
        if after > 0:
            slope = (slope + (there - model(there, after.expand(len(x)))) / after) / 2
        x = x + slope * (after - sigma)
    return x


def sampler(function: Callable[..., Any], **options: Any) -> Any:
    return SimpleNamespace(sampler_function=function, extra_options=options)


def sigmas_of(steps: int) -> Tensor:
    return torch.linspace(1, 0, steps + 1) ** 1.2
