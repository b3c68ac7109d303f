"""SimCLR: a contrastive encoder to compare embeddings with (arXiv 2002.05709). It cannot reconstruct.

    lsm train --config configs/simclr.py:VARIANT --workdir runs/W --config.data.paths=DIR

Two views of each window, half of it or less, are told from those of other windows. The encoder is LSM-2's.
"""

from ml_collections import ConfigDict

from lsm_jax.config import defaults


def quickstart(config: ConfigDict) -> None:
    """Data: a synthetic cohort of 100 people, 7 days (`lsm synth --people 100 --days 7 --out data/synth`).
    Machine: laptop, two cores. Time: minutes; not measured. Expect: not measured.
    """
    _views(config)
    config.train.batch_size = 64
    config.train.duration = "300 steps"
    config.train.log_every = "10 steps"
    config.evaluate.batches = 2


def small(config: ConfigDict) -> None:
    """Data: `lsm synth --people 2000 --days 8 --seed 0 --out data/synth`, or recordings.
    Machine: laptop, two cores. Time: not measured. Expect: not measured.
    """
    _views(config)
    config.train.batch_size = 64
    config.train.duration = "2600 steps"


def base(config: ConfigDict) -> None:
    """The encoder of `configs/lsm2.py:base`.

    Data: millions of days. Machine: GPUs or a TPU pod. Time: not measured. Expect: not measured.
    """
    _views(config)
    config.model.size = "base"
    config.rows.windows_per_row = 16
    config.rows.encoder_length = 0
    config.train.batch_size = 4096
    config.train.duration = "100000 steps"


VARIANTS = {"quickstart": quickstart, "small": small, "base": base}


def get_config(variant: str = "") -> ConfigDict:
    """The configuration of a variant; `base` if none is named."""
    config = defaults()
    VARIANTS[variant or "base"](config)
    return config


def _views(config: ConfigDict) -> None:
    """What a view loses: tokens, hours or channels."""
    config.objective.name = "simclr"
    config.masking.policies = (("random", 0.5, 1.0), ("time", 0.5, 1.0), ("sensor", 0.5, 1.0))
    config.rows.encoder_length = 512  # more tokens of a view are left out, at random: another way for views to differ
