"""Every configuration key: its type, default and meaning. They are defined only here.

The rest of the code takes these sections as arguments. Durations are text: "20000 steps", "10 epochs",
"500000 examples", or "5 percent" of the whole run.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from typing import Any, ClassVar, Literal


class Strict:
    """Settings of pydantic: values are not converted to another type, unknown keys are refused."""

    __pydantic_config__: ClassVar = {"strict": True, "extra": "forbid", "allow_inf_nan": False}


def key(default: Any, meaning: str) -> Any:
    """A key with its default; `lsm train --help` prints its meaning."""
    return dataclasses.field(default=default, metadata={"help": meaning})


def section(kind: type) -> Any:
    """A section with all its defaults; its docstring is its help."""
    return dataclasses.field(default_factory=kind)


@dataclasses.dataclass(frozen=True)
class DataConfig(Strict):
    """Which datasets are read, and how."""

    paths: tuple[str, ...] = key((), "dataset folders")
    weights: tuple[float, ...] = key((), "weight of each dataset in the mixture; empty: its number of windows")
    people_share: float = key(
        1.0,
        "share of each dataset's training people to train on; a smaller share is part of a larger one",
    )
    channels: tuple[str, ...] = key((), "canonical names of the model's channels; empty: all that the datasets have")
    window_minutes: int = key(1440, "length of a window; shorter than stored: a random crop each time")
    workers: int = key(0, "processes that read ahead; 0: threads of this process")
    threads: int = key(2, "reading threads of each process")
    prefetch: int = key(4, "batches read ahead")
    max_corrupt: int = key(16, "corrupt records that a run sets aside, each counted once, before it fails")


@dataclasses.dataclass(frozen=True)
class TokensConfig(Strict):
    """How a window is cut into tokens."""

    patch_minutes: int = key(10, "minutes of a token (10 in all three papers)")
    patch_channels: int = key(1, "channels of a token: 1 in LSM-2, 2 in SensorLM, 5 in LSM-1")
    min_observed_share: float = key(0.0, "share of a patch's cells that must be recorded; 0: at least one cell, 1: all")


@dataclasses.dataclass(frozen=True)
class MaskingConfig(Strict):
    """Which tokens training hides."""

    policies: tuple[tuple[str, float, float], ...] = key(
        (("random", 0.8, 1.0), ("time", 0.5, 1.0), ("sensor", 0.5, 1.0)),
        "(policy, share hidden, weight) of each policy: random, time, sensor, gap, forecast; the default is AIM's",
    )
    share_of: Literal["observed", "grid"] = key(
        "observed", "what shares are counted over: recorded tokens, or the whole grid (the paper's)"
    )


@dataclasses.dataclass(frozen=True)
class RowsConfig(Strict):
    """How tokens are packed into rows of static length."""

    layout: Literal["packed", "fixed_drop", "dense"] = key(
        "packed", "packed: visible tokens only; fixed_drop: AIM's fixed D; dense: every token keeps its slot"
    )
    windows_per_row: int = key(1, "windows packed side by side in a row")
    encoder_length: int = key(0, "visible tokens of a row; 0: from the data's missingness and the masks")
    decoder_length: int = key(0, "decoded tokens of a row; 0: computed, as encoder_length")
    decoded_share: float = key(
        1.0, "share of the hidden tokens decoded in a step, sampled by their size and reweighted by 1/p"
    )
    eval_max_tokens: int = key(0, "visible tokens of a window that the encoder reads to reconstruct it; 0: all")
    dropped_share: float = key(0.5, "D of the layout fixed_drop, as a share of all tokens")


@dataclasses.dataclass(frozen=True)
class ModelConfig(Strict):
    """The network."""

    size: str = key(
        "tiny",
        "a name of nn/sizes.py, or depth x width x heads x hidden width of each stack: 12x384x6x1536+4x256x4x1024 "
        "(encoder + decoder; SensorLM: encoder + text tower + decoder)",
    )
    decoder: Literal["cross", "observed", "all"] = key(
        "cross",
        "cross: target tokens attend to the encoder's output; observed: self-attention over visible and target tokens; "
        "all: over every position (the paper's)",
    )
    patch_input: Literal["values_and_mask", "values"] = key(
        "values_and_mask", "input of the patch embedding; values alone is the paper's"
    )
    asinh_inputs: bool = key(True, "compress values by asinh before the encoder (not in the paper)")
    num_neighbors: int = key(
        3, "encoded tokens of its channel, on either side, that a target token reads; 0: no local context (the paper's)"
    )
    context_width: int = key(256, "width of the local context, which reads those neighbors")
    positions: Literal["learned", "sincos"] = key("learned", "position embedding; sincos is the paper's")
    rotary: bool = key(
        True, "attention also sees how far apart tokens are, by rotary embeddings of their time (not in the papers)"
    )
    attention: str = key("auto", "implementation of attention; auto chooses by platform and row length")
    remat: Literal["none", "dots", "full"] = key("none", "rematerialisation in the backward pass")
    dtype: Literal["auto", "float32", "bfloat16"] = key(
        "auto", "type of the computation; auto: bfloat16 on accelerators, float32 on CPUs"
    )
    encoder_from: str = key("", "folder of a run whose encoder this run starts from (SensorLM, supervised)")
    freeze_encoder: bool = key(False, "leave the encoder of encoder_from as it is")


@dataclasses.dataclass(frozen=True)
class LanguageConfig(Strict):
    """Captions and the sensor-text model (SensorLM)."""

    levels: str = key("", "caption levels: semantic, structural, statistical, joined by +, or all; empty: no captions")
    events: tuple[str, ...] = key(
        (), "kinds of events in semantic captions: activity, sleep, mood, meal, session; empty: all"
    )
    seed: int = key(0, "seed of the captions' wording")
    held_out_activities: tuple[str, ...] = key(
        (), "activities to stay unseen: days with one have no caption in training"
    )
    event_crop_prob: float = key(0.0, "probability that a training window is cropped around one event")
    tokenizer: str = key("", "file written by `lsm caption --tokenizer`; the run keeps a copy")
    vocab_size: int = key(4000, "rows of the token embedding; at least the tokenizer's ids")
    text_length: int = key(256, "tokens of a caption; longer ones are cut (text_truncated); all levels need 1024")
    caption_queries: int = key(16, "learned queries that the caption decoder reads; 0: the encoder's tokens")
    embed_dim: int = key(128, "width of the shared embedding of windows and texts")
    init_logit_scale: float = key(0.0, "initial inverse temperature, at most 100; 0: SigLIP's 10, CLIP's 1 / 0.07")
    init_logit_bias: float = key(-10.0, "initial bias of SigLIP")
    contrastive_weight: float = key(1.0, "weight of CoCa's contrastive loss")
    caption_weight: float = key(2.0, "weight of CoCa's captioning loss")


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig(Strict):
    """The training objective."""

    name: str = key(
        "masked_reconstruction",
        "masked_reconstruction (LSM-2), imputed_reconstruction (LSM-1); simclr; clip, siglip, cap, coca (SensorLM); "
        "supervised (fine-tuning)",
    )
    person_weight: float = key(
        0.0,
        "weight of the person loss, a contrastive loss over people beside masked_reconstruction or "
        "imputed_reconstruction; above 0, batches hold pairs of windows of one person",
    )
    temperature: float = key(0.1, "temperature of simclr and of the person loss")
    jitter: float = key(0.1, "sd of the noise that simclr adds to z-scored cells")


@dataclasses.dataclass(frozen=True)
class SupervisedConfig(Strict):
    """What fine-tuning predicts."""

    task: str = key("", "a label of the data, or event_KIND: the name of each event of a kind, such as event_activity")
    classes: tuple[str, ...] = key((), "names of the classes; empty: from the data cards, none for a number")
    mean: float = key(0.0, "mean of a number over people; with sd=0: from the data cards")
    sd: float = key(0.0, "standard deviation of a number over people; 0: from the data cards")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Strict):
    """The optimizer and its learning rate."""

    name: Literal["adamw", "muon"] = key("adamw", "muon: Muon for the matrices of blocks, AdamW for the rest")
    learning_rate: float = key(1e-3, "peak learning rate")
    schedule: Literal["constant", "cosine", "linear", "rsqrt"] = key("cosine", "learning-rate curve after the warm-up")
    warmup: str = key("5 percent", "linear warm-up: the first of n steps has 1/n of the peak")
    cooldown: str = key("0 steps", "linear cool-down to zero at the end, for constant and rsqrt")
    final_lr_fraction: float = key(0.0, "share of the peak where cosine and linear end")
    rsqrt_timescale: str = key("10000 steps", "timescale of rsqrt")
    weight_decay: float = key(
        0.05, "decay of kernels (with muon, of those in blocks); biases, norms and tables are not decayed"
    )
    betas: tuple[float, float] = key((0.9, 0.95), "Adam's decay rates")
    epsilon: float = key(1e-8, "Adam's epsilon")
    clip_norm: float = key(1.0, "largest global norm of the gradient; 0: no clipping")


@dataclasses.dataclass(frozen=True)
class TrainConfig(Strict):
    """Batches, length and logging of a run."""

    batch_size: int = key(32, "windows of the global batch")
    duration: str = key("10 epochs", "length of the run")
    grad_accum_steps: int = key(1, "micro-batches of a step")
    ema_decay: float = key(0.0, "decay of averaged parameters, which evaluation then uses; 0: none")
    outlier_factor: float = key(
        100.0,
        "a step is skipped if its gradient norm or loss is this many times the running mean; 0: only if not finite",
    )
    max_bad_steps: int = key(20, "skipped steps in a row after which on_bad_steps is done; 0: never")
    on_bad_steps: Literal["stop", "rollback"] = key(
        "stop", "stop: the run fails; rollback: it goes back to the last checkpoint and on with later data"
    )
    sdc_check_every: int = key(0, "steps between two that are computed twice, to find devices that err; 0: never")
    log_every: str = key("50 steps", "how often metrics are written")
    trackers: tuple[str, ...] = key(
        ("tensorboard",), "where metrics also go: tensorboard, trackio, wandb, mlflow (those that are installed)"
    )
    profile_steps: tuple[int, ...] = key((), "first and last step to trace for TensorBoard")
    hang_timeout: float = key(
        1800.0, "seconds without a step before the run ends; 10 times as many to compile, evaluate or save; 0: never"
    )
    lost_timeout: float = key(45.0, "seconds without a sign of life of another process before the run ends; 0: never")
    peak_flops: float = key(0.0, "peak FLOP/s of one device, for MFU; 0: from a table, or measured")


@dataclasses.dataclass(frozen=True)
class CheckpointConfig(Strict):
    """When checkpoints are saved and how many are kept."""

    every: str = key("10 percent", 'how often a checkpoint is saved; a time as well: "10 minutes"')
    keep: int = key(2, "verified checkpoints to keep, at least 2")


@dataclasses.dataclass(frozen=True)
class MeshConfig(Strict):
    """Devices along each mesh axis; one of data, fsdp and tensor may be -1: the rest."""

    slices: int = key(1, "slices joined by the data-centre network")
    data: int = key(-1, "data parallelism: parameters replicated")
    fsdp: int = key(1, "data parallelism with sharded parameters")
    tensor: int = key(1, "tensor parallelism: heads and hidden units sharded")


@dataclasses.dataclass(frozen=True)
class EvaluateConfig(Strict):
    """Validation and evaluation suites during training."""

    every: str = key("5 percent", 'how often the validation loss is taken; "0 steps": never')
    batches: int = key(16, "batches of the validation split, at most")
    suites: tuple[str, ...] = key((), "suites of `lsm evaluate --suite` that are also run during training")
    suites_every: str = key("0 steps", "how often they are run; needed with suites")
    suite_windows: int = key(64, "windows each of them takes, at most")


@dataclasses.dataclass(frozen=True)
class Config(Strict):
    """A whole configuration."""

    seed: int = key(0, "seed of parameters, masks and data order")
    data: DataConfig = section(DataConfig)
    tokens: TokensConfig = section(TokensConfig)
    masking: MaskingConfig = section(MaskingConfig)
    rows: RowsConfig = section(RowsConfig)
    model: ModelConfig = section(ModelConfig)
    language: LanguageConfig = section(LanguageConfig)
    objective: ObjectiveConfig = section(ObjectiveConfig)
    supervised: SupervisedConfig = section(SupervisedConfig)
    optimizer: OptimizerConfig = section(OptimizerConfig)
    train: TrainConfig = section(TrainConfig)
    checkpoint: CheckpointConfig = section(CheckpointConfig)
    mesh: MeshConfig = section(MeshConfig)
    evaluate: EvaluateConfig = section(EvaluateConfig)


@dataclasses.dataclass(frozen=True)
class KeyHelp:
    """Type, default and meaning of a key, for `--help` and error messages.

    Attributes:
      section, section_meaning: "general" for keys outside of sections.
      kind: its annotated type.
    """

    section: str
    section_meaning: str
    kind: Any
    default: Any
    meaning: str

    @property
    def type_name(self) -> str:
        """The type in a word; for a choice, its values joined by `|`."""
        if typing.get_origin(self.kind) is Literal:
            return "|".join(typing.get_args(self.kind))
        return {bool: "true|false", int: "integer", float: "number", str: "text"}.get(self.kind, "list")


@functools.cache
def key_help() -> dict[str, KeyHelp]:
    """Every key by its dotted name, `train.batch_size`."""
    found: dict[str, KeyHelp] = {}
    for outer, kind in typing.get_type_hints(Config).items():
        field = Config.__dataclass_fields__.get(outer)
        if field is None:  # a class variable
            continue
        if not dataclasses.is_dataclass(kind):
            found[outer] = KeyHelp("general", "", kind, field.default, field.metadata["help"])
            continue
        kinds = typing.get_type_hints(kind)
        for inner in dataclasses.fields(kind):
            found[f"{outer}.{inner.name}"] = KeyHelp(
                outer, kind.__doc__ or "", kinds[inner.name], inner.default, inner.metadata["help"]
            )
    return found
