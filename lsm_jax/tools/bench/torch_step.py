"""A plain PyTorch training step of LSM-2, the baseline of `lsm bench step`.

What one writes who follows the paper: the encoder reads a fixed half of the positions (AIM's fixed D), masked where
they are not visible, the decoder every position; `scaled_dot_product_attention`, autocast for bfloat16, fused AdamW.
The function is ours with the variant `paper`, parameter for parameter, and the tests hold the losses equal.

PyTorch is no dependency: only who measures against it imports this module.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from lsm_jax.nn.sizes import ModelSize, StackSize

Arrays = Mapping[str, np.ndarray]
_PARTS = {"cpu": 2, "cuda": 16}  # windows taken at a time: the memory of a step grows with them


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """AdamW with clipping by global norm, as the section `optimizer` of a configuration has it."""

    learning_rate: float
    betas: tuple[float, float]
    epsilon: float
    weight_decay: float
    clip: float


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What the model is made from.

    Attributes:
      encoder_positions, decoder_positions: fixed vectors of the N positions.
      cells: K, cells of a token.
      kept: N - D, the tokens of a window that the encoder reads.
    """

    size: ModelSize
    encoder_positions: Float[np.ndarray, "n d"]
    decoder_positions: Float[np.ndarray, "n e"]
    cells: int
    kept: int


class Block(nn.Module):
    """Pre-norm block: self-attention, then feed-forward."""

    def __init__(self, size: StackSize) -> None:
        super().__init__()
        self.heads = size.heads
        self.attention_norm = nn.LayerNorm(size.width, eps=1e-6)
        self.query_key_value = nn.Linear(size.width, 3 * size.width)
        self.output = nn.Linear(size.width, size.width)
        self.feed_forward_norm = nn.LayerNorm(size.width, eps=1e-6)
        self.expand = nn.Linear(size.width, size.hidden)
        self.contract = nn.Linear(size.hidden, size.width)

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        windows, length, width = tokens.shape
        heads = self.query_key_value(self.attention_norm(tokens)).view(windows, length, 3, self.heads, -1)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        tokens = tokens + self.output(attended.transpose(1, 2).reshape(windows, length, width))
        hidden = functional.gelu(self.expand(self.feed_forward_norm(tokens)), approximate="tanh")
        return tokens + self.contract(hidden)


class Autoencoder(nn.Module):
    """LSM-2 with the paper's decoder."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        encoder, decoder = recipe.size.encoder, recipe.size.decoder
        self.kept = recipe.kept
        self.patches = nn.Linear(recipe.cells, encoder.width)
        self.encoder = nn.ModuleList([Block(encoder) for _ in range(encoder.depth)])
        self.encoder_norm = nn.LayerNorm(encoder.width, eps=1e-6)
        self.bridge = nn.Linear(encoder.width, decoder.width)
        self.mask_token = nn.Parameter(0.02 * torch.randn(decoder.width))
        self.decoder = nn.ModuleList([Block(decoder) for _ in range(decoder.depth)])
        self.decoder_norm = nn.LayerNorm(decoder.width, eps=1e-6)
        self.head = nn.Linear(decoder.width, recipe.cells)
        # Not parameters, and torch refuses arrays it may not write to.
        self.register_buffer("encoder_positions", torch.tensor(recipe.encoder_positions), persistent=False)
        self.register_buffer("decoder_positions", torch.tensor(recipe.decoder_positions), persistent=False)

    def forward(self, values: Tensor, shown: Tensor) -> Tensor:
        """Predicted cells [B, N, K] of every token, from the `shown` [B, N] tokens of `values` [B, N, K]."""
        places = torch.argsort((~shown).to(torch.int8), dim=1, stable=True)[:, : self.kept]
        seen = shown.gather(1, places)
        tokens = self.patches(values.gather(1, places[:, :, None].expand(-1, -1, values.shape[2])))
        tokens = tokens + self.encoder_positions[places]
        for block in self.encoder:
            tokens = block(tokens, seen[:, None, None, :])
        known = self.bridge(self.encoder_norm(tokens))
        bare = self.mask_token.to(known.dtype)
        known = torch.where(seen[:, :, None], known, bare)
        stage = bare.expand(*shown.shape, -1).scatter(1, places[:, :, None].expand_as(known), known)
        stage = stage + self.decoder_positions
        for block in self.decoder:
            stage = block(stage, None)
        return self.head(self.decoder_norm(stage))


def on_device(batch: Arrays, device: str) -> dict[str, Tensor]:
    """A batch where the model computes."""
    return {name: torch.from_numpy(array).to(device) for name, array in batch.items()}


def squared_errors(model: Autoencoder, batch: Mapping[str, Tensor]) -> Tensor:
    """The sum of squared errors over the scored cells.

    Args:
      batch: `values` [B, N, K], 0 where unobserved; `shown` [B, N], the tokens seen; `scored` [B, N, K], the observed
        cells of hidden tokens.
    """
    values, shown, scored = (batch[name] for name in ("values", "shown", "scored"))
    return (torch.square(model(values, shown).float() - values) * scored).sum()


class Step:
    """A training step: forward and backward, a few windows at a time, then clipping and AdamW."""

    def __init__(self, model: Autoencoder, settings: Optimizer, dtype: str, device: str = "cpu") -> None:
        self.model, self.settings, self.device = model.to(device), settings, device
        self.dtype = getattr(torch, dtype)
        self.optimizer = torch.optim.AdamW(
            model.parameters(),
            settings.learning_rate,
            settings.betas,
            settings.epsilon,
            settings.weight_decay,
            fused=True,
        )

    def __call__(self, batch: Mapping[str, Tensor]) -> float:
        """Takes the step and returns the loss before it, the mean squared error over all scored cells."""
        self.optimizer.zero_grad(set_to_none=True)
        cells, together = batch["scored"].sum().clamp(min=1), _PARTS[self.device]
        total = torch.zeros((), device=self.device)
        for first in range(0, len(batch["shown"]), together):
            part = {name: array[first : first + together] for name, array in batch.items()}
            with torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32):
                loss = squared_errors(self.model, part) / cells
            loss.backward()
            total += loss.detach()
        if self.settings.clip > 0:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        self.optimizer.step()
        return float(total)  # waits for all of it


class _Worker:
    """A step with the batch it is to take: the state of the process that `worker` starts."""

    step: Step
    batch: dict[str, Tensor]
    before: int | None


def worker(recipe: Recipe, settings: Optimizer, dtype: str, device: str) -> ProcessPoolExecutor:
    """A process of PyTorch's own, for `give`, `take`, `cpu_seconds` and `peak_bytes`.

    In one process with JAX its memory would be in the way of ours, and ours of its.
    """
    return ProcessPoolExecutor(
        1, multiprocessing.get_context("spawn"), initializer=_begin, initargs=(recipe, settings, dtype, device)
    )


def _begin(recipe: Recipe, settings: Optimizer, dtype: str, device: str) -> None:
    _Worker.before = _memory("VmRSS")
    _Worker.step = Step(Autoencoder(recipe), settings, dtype, device)


def give(batch: Arrays) -> None:
    """Hands a worker the batch of its next step."""
    _Worker.batch = on_device(batch, _Worker.step.device)


def take() -> float:
    """Takes the step; the loss."""
    return _Worker.step(_Worker.batch)


def cpu_seconds() -> float:
    """Processor seconds of all threads of a worker."""
    return time.process_time()


def peak_bytes() -> int | None:
    """The most memory its steps took, model and optimizer included; None where the system does not tell."""
    if _Worker.step.device == "cuda":
        return torch.cuda.max_memory_allocated()
    peak = _memory("VmHWM")
    return None if _Worker.before is None or peak is None else peak - _Worker.before


def _memory(entry: str) -> int | None:
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    lines = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines())
    return int(lines[entry].split()[0]) * 1024
