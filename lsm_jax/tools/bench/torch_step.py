"""A plain PyTorch training step of LSM-2, the baseline of `lsm bench step`.

It follows the paper: the encoder reads a fixed half of the positions (AIM's fixed D), masked if they are not visible,
the decoder reads all. It uses PyTorch's own transformer layers, autocast for bfloat16 and fused AdamW. The function is
ours with the variant `paper`; a test holds the losses equal for equal parameters. PyTorch is no dependency: only this
module imports it.
"""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lsm_jax.config import OptimizerConfig
from lsm_jax.nn.sizes import StackSize

_state: dict[str, Any] = {}  # of the process that `process` starts: the step, its batch, memory before both
_WINDOWS_AT_A_TIME = {"cpu": 2, "cuda": 16}  # the memory of a step grows with them


def _stack(size: StackSize) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(
        size.width, size.heads, size.hidden, dropout=0.0, layer_norm_eps=1e-6, batch_first=True, norm_first=True,
        activation=functools.partial(nn.functional.gelu, approximate="tanh"),
    )  # fmt: skip
    return nn.TransformerEncoder(layer, size.depth, nn.LayerNorm(size.width, eps=1e-6), enable_nested_tensor=False)


class Autoencoder(nn.Module):
    """LSM-2 with the paper's decoder.

    Args:
      encoder_positions, decoder_positions: fixed embeddings of the N positions.
      encoder_tokens: N - D, the tokens of a window that the encoder reads.
    """

    def __init__(
        self,
        encoder: StackSize,
        decoder: StackSize,
        encoder_positions: Float[np.ndarray, "n d"],
        decoder_positions: Float[np.ndarray, "n e"],
        cells_per_token: int,
        encoder_tokens: int,
    ) -> None:
        super().__init__()
        self.encoder_tokens = encoder_tokens
        self.patches = nn.Linear(cells_per_token, encoder.width)
        self.encoder = _stack(encoder)
        self.decoder_embed = nn.Linear(encoder.width, decoder.width)
        self.mask_token = nn.Parameter(0.02 * torch.randn(decoder.width))
        self.decoder = _stack(decoder)
        self.head = nn.Linear(decoder.width, cells_per_token)
        # Copies: torch refuses arrays that it may not write to.
        self.register_buffer("encoder_positions", torch.tensor(encoder_positions), persistent=False)
        self.register_buffer("decoder_positions", torch.tensor(decoder_positions), persistent=False)

    def forward(self, values: Float[Tensor, "b n k"], visible: Bool[Tensor, "b n"]) -> Float[Tensor, "b n k"]:
        """Predicted cells of every token, from the visible tokens."""
        # Visible tokens first; the rest of the encoder's half is masked.
        indices = torch.argsort((~visible).to(torch.int8), dim=1, stable=True)[:, : self.encoder_tokens]
        is_visible = visible.gather(1, indices)
        tokens = self.patches(values.gather(1, indices[:, :, None].expand(-1, -1, values.shape[2])))
        tokens = self.encoder(tokens + self.encoder_positions[indices], src_key_padding_mask=~is_visible)
        encoded = self.decoder_embed(tokens)
        mask_token = self.mask_token.to(encoded.dtype)
        encoded = torch.where(is_visible[:, :, None], encoded, mask_token)
        tokens = mask_token.expand(*visible.shape, -1).scatter(1, indices[:, :, None].expand_as(encoded), encoded)
        return self.head(self.decoder(tokens + self.decoder_positions))


def on_device(batch: Mapping[str, np.ndarray], device: str) -> dict[str, Tensor]:
    """A batch where the model computes."""
    return {name: torch.from_numpy(array).to(device) for name, array in batch.items()}


def squared_errors(model: Autoencoder, batch: Mapping[str, Tensor]) -> Tensor:
    """The sum of squared errors over the target cells.

    Args:
      batch: `values` [B, N, K], 0 where unobserved; `visible` [B, N], the tokens that the encoder reads; `target_cells`
        [B, N, K], the observed cells of hidden tokens.
    """
    errors = model(batch["values"], batch["visible"]).float() - batch["values"]
    return (torch.square(errors) * batch["target_cells"]).sum()


class Step:
    """A training step: forward and backward, a few windows at a time, then clipping and AdamW."""

    def __init__(self, model: Autoencoder, config: OptimizerConfig, dtype: str, device: str = "cpu") -> None:
        self.model, self.device, self.clip_norm = model.to(device), device, config.clip_norm
        self.dtype = getattr(torch, dtype)
        self.optimizer = torch.optim.AdamW(
            model.parameters(), config.learning_rate, config.betas, config.epsilon, config.weight_decay, fused=True
        )

    def __call__(self, batch: Mapping[str, Tensor]) -> float:
        """Takes the step and returns the loss before it, the mean squared error over all target cells."""
        self.optimizer.zero_grad(set_to_none=True)
        cells, windows = batch["target_cells"].sum().clamp(min=1), _WINDOWS_AT_A_TIME[self.device]
        total = torch.zeros((), device=self.device)
        for first in range(0, len(batch["visible"]), windows):
            part = {name: array[first : first + windows] for name, array in batch.items()}
            with torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32):
                loss = squared_errors(self.model, part) / cells
            loss.backward()
            total += loss.detach()
        if self.clip_norm > 0:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self.optimizer.step()
        return float(total)  # waits for all of it


def process(model: Mapping[str, Any], optimizer: OptimizerConfig, dtype: str, device: str) -> ProcessPoolExecutor:
    """A process of its own for PyTorch, to submit `set_batch`, `run_step` and `peak_bytes` to.

    In one process the memory that JAX and PyTorch hold could not be told from each other. `model` has the arguments of
    `Autoencoder`.
    """
    arguments = (model, optimizer, dtype, device)
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_begin, initargs=arguments)


def _begin(model: Mapping[str, Any], optimizer: OptimizerConfig, dtype: str, device: str) -> None:
    _state["memory_before"] = _memory("VmRSS")
    if device == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, as JAX
    _state["step"] = Step(Autoencoder(**model), optimizer, dtype, device)


def set_batch(batch: Mapping[str, np.ndarray]) -> None:
    """Gives the process the batch of its next step."""
    _state["batch"] = on_device(batch, _state["step"].device)


def run_step() -> float:
    """Takes the step and returns the loss."""
    return _state["step"](_state["batch"])


def peak_bytes() -> int | None:
    """The most memory that the steps took, model and optimizer included; None if the system does not tell."""
    if _state["step"].device == "cuda":
        return torch.cuda.max_memory_allocated()
    before, peak = _state["memory_before"], _memory("VmHWM")
    return None if before is None or peak is None else peak - before


def _memory(entry: str) -> int | None:
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    lines = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines())
    return int(lines[entry].split()[0]) * 1024
