"""A plain PyTorch training step of LSM-2, the baseline of `lsm bench step`.

It follows the paper: the encoder reads a fixed half of the positions (AIM's fixed D), masked if they are not visible,
the decoder reads all. It uses `scaled_dot_product_attention`, autocast for bfloat16 and fused AdamW. The function is
ours with the variant `paper`; a test holds the losses equal for equal parameters. PyTorch is no dependency: only this
module imports it.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from lsm_jax.config import OptimizerConfig
from lsm_jax.nn.sizes import StackSize

Arrays = Mapping[str, np.ndarray]
_WINDOWS_AT_A_TIME = {"cpu": 2, "cuda": 16}  # the memory of a step grows with them


@dataclasses.dataclass(frozen=True)
class TorchModel:
    """What an `Autoencoder` is made from.

    Attributes:
      encoder_positions, decoder_positions: fixed embeddings of the N positions.
      encoder_tokens: N - D, the tokens of a window that the encoder reads.
    """

    encoder: StackSize
    decoder: StackSize
    encoder_positions: Float[np.ndarray, "n d"]
    decoder_positions: Float[np.ndarray, "n e"]
    cells_per_token: int
    encoder_tokens: int


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

    def __init__(self, model: TorchModel) -> None:
        super().__init__()
        encoder, decoder = model.encoder, model.decoder
        self.encoder_tokens = model.encoder_tokens
        self.patches = nn.Linear(model.cells_per_token, encoder.width)
        self.encoder = nn.ModuleList([Block(encoder) for _ in range(encoder.depth)])
        self.encoder_norm = nn.LayerNorm(encoder.width, eps=1e-6)
        self.decoder_embed = nn.Linear(encoder.width, decoder.width)
        self.mask_token = nn.Parameter(0.02 * torch.randn(decoder.width))
        self.decoder = nn.ModuleList([Block(decoder) for _ in range(decoder.depth)])
        self.decoder_norm = nn.LayerNorm(decoder.width, eps=1e-6)
        self.head = nn.Linear(decoder.width, model.cells_per_token)
        # Copies: torch refuses arrays that it may not write to.
        self.register_buffer("encoder_positions", torch.tensor(model.encoder_positions), persistent=False)
        self.register_buffer("decoder_positions", torch.tensor(model.decoder_positions), persistent=False)

    def forward(self, values: Tensor, visible: Tensor) -> Tensor:
        """Predicted cells [B, N, K] of every token, from the `visible` [B, N] tokens of `values` [B, N, K]."""
        # Visible tokens first; the rest of the encoder's half is masked.
        indices = torch.argsort((~visible).to(torch.int8), dim=1, stable=True)[:, : self.encoder_tokens]
        is_visible = visible.gather(1, indices)
        tokens = self.patches(values.gather(1, indices[:, :, None].expand(-1, -1, values.shape[2])))
        tokens = tokens + self.encoder_positions[indices]
        for block in self.encoder:
            tokens = block(tokens, is_visible[:, None, None, :])
        encoded = self.decoder_embed(self.encoder_norm(tokens))
        mask_token = self.mask_token.to(encoded.dtype)
        encoded = torch.where(is_visible[:, :, None], encoded, mask_token)
        tokens = mask_token.expand(*visible.shape, -1).scatter(1, indices[:, :, None].expand_as(encoded), encoded)
        tokens = tokens + self.decoder_positions
        for block in self.decoder:
            tokens = block(tokens, None)
        return self.head(self.decoder_norm(tokens))


def on_device(batch: Arrays, device: str) -> dict[str, Tensor]:
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


class _InProcess:
    """The state of the process that `process` starts: the step, its next batch, and memory before both."""

    step: Step
    batch: dict[str, Tensor]
    memory_before: int | None


def process(model: TorchModel, optimizer: OptimizerConfig, dtype: str, device: str) -> ProcessPoolExecutor:
    """A process of its own for PyTorch, to submit `set_batch`, `run_step` and `peak_bytes` to.

    In one process the memory that JAX and PyTorch hold could not be told from each other.
    """
    arguments = (model, optimizer, dtype, device)
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_begin, initargs=arguments)


def _begin(model: TorchModel, optimizer: OptimizerConfig, dtype: str, device: str) -> None:
    _InProcess.memory_before = _memory("VmRSS")
    _InProcess.step = Step(Autoencoder(model), optimizer, dtype, device)


def set_batch(batch: Arrays) -> None:
    """Gives the process the batch of its next step."""
    _InProcess.batch = on_device(batch, _InProcess.step.device)


def run_step() -> float:
    """Takes the step and returns the loss."""
    return _InProcess.step(_InProcess.batch)


def peak_bytes() -> int | None:
    """The most memory that the steps took, model and optimizer included; None if the system does not tell."""
    if _InProcess.step.device == "cuda":
        return torch.cuda.max_memory_allocated()
    before, peak = _InProcess.memory_before, _memory("VmHWM")
    return None if before is None or peak is None else peak - before


def _memory(entry: str) -> int | None:
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    lines = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines())
    return int(lines[entry].split()[0]) * 1024
