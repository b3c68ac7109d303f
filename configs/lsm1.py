"""LSM-1: the plain masked autoencoder of imputed windows (arXiv 2410.13638; docs/explanation/lsm1.md).

    lsm train --config configs/lsm1.py:VARIANT --workdir runs/W --config.data.paths=DIR

Every variant has the paper's windows (300 minutes; `day` and `day_small`: 1440), patches of 10 minutes x 5 channels,
random masking of 80 % and a decoder over every position. The optimizer is MAE's (He et al. 2022, arXiv 2111.06377):
the paper's is not known to us.
"""

from ml_collections import ConfigDict

from lsm_jax.config import defaults


def quickstart(config: ConfigDict) -> None:
    """Data: a synthetic cohort of 100 people, 7 days (`lsm synth --people 100 --days 7 --out data/synth`).
    Machine: laptop, two cores. Time: minutes; not measured. Expect: not measured.
    """
    _laptop(config)
    config.train.batch_size = 64
    config.train.duration = "600 steps"
    config.train.log_every = "20 steps"
    config.evaluate.batches = 2


def small(config: ConfigDict) -> None:
    """Data: `lsm synth --people 2000 --days 8 --seed 0 --out data/synth`.
    Machine: laptop, two cores. Time: not measured. Expect: not measured.
    """
    _laptop(config)
    config.train.batch_size = 128
    config.train.duration = "5000 steps"


def day(config: ConfigDict) -> None:
    """Day windows, so that LSM-1 and LSM-2 see equal data: as `quickstart` otherwise.

    Data: as quickstart. Machine: laptop, two cores. Time: 10 minutes, estimated from 150 steps (4 minutes on one core).
    Expect: after 150 steps random imputation 80 % 0.825 (linear interpolation 0.612), measured on 400 people.
    """
    _laptop(config)
    config.data.window_minutes = 1440
    config.train.batch_size = 16
    config.train.duration = "300 steps"
    config.train.log_every = "10 steps"
    config.evaluate.batches = 2


def day_small(config: ConfigDict) -> None:
    """Day windows at the length of training of `configs/lsm2.py:small`.

    Data: as small, or the six open data sets. Machine: laptop, two cores. Time: 3 hours, estimated from 800 steps
    (an hour on one core). Expect: after 800 steps on the open data random imputation 80 % 1.001 (the mean 0.804).
    """
    _laptop(config)
    config.data.window_minutes = 1440
    config.train.batch_size = 32
    config.train.duration = "2600 steps"


def paper(config: ConfigDict, size: str = "lsm1-110m") -> None:
    """The paper's 110M model. Batch size and length are ours.

    Data: millions of hours. Machine: a TPU or GPU pod (`lsm plan`). Time: not measured. Expect: not measured.
    """
    _lsm1(config)
    config.model.size = size
    config.optimizer.learning_rate = 2.4e-3  # MAE's for this batch size
    config.train.batch_size = 4096
    config.train.duration = "50000 steps"


def two_million(config: ConfigDict) -> None:
    """Data: as 110m. Machine: one GPU. Time: not measured. Expect: not measured."""
    paper(config, "lsm1-2m")


def seven_million(config: ConfigDict) -> None:
    """Data: as 110m. Machine: one GPU. Time: not measured. Expect: not measured."""
    paper(config, "lsm1-7m")


def largest(config: ConfigDict) -> None:
    """Data: as 110m. Machine: a TPU or GPU pod (`lsm plan`). Time: not measured. Expect: not measured."""
    paper(config, "lsm1-328m")


VARIANTS = {
    "quickstart": quickstart, "small": small, "day": day, "day_small": day_small, "2m": two_million,
    "7m": seven_million, "110m": paper, "328m": largest,
}  # fmt: skip


def get_config(variant: str = "") -> ConfigDict:
    """The configuration of a variant; `110m` if none is named."""
    config = defaults()
    VARIANTS[variant or "110m"](config)
    return config


def _lsm1(config: ConfigDict) -> None:
    """The plain setting, the same in every variant."""
    config.objective.name = "imputed_reconstruction"
    config.data.window_minutes = 300
    config.tokens.patch_channels = 5
    config.masking.policies = (("random", 0.8, 1.0),)
    config.masking.share_of = "grid"
    config.rows.layout = "fixed_drop"  # every window has as many visible tokens
    config.rows.dropped_share = 0.8
    config.model.decoder = "all"
    config.model.positions = "sincos"
    config.model.patch_input = "values"
    config.model.asinh_inputs = False
    config.model.rotary = False
    config.model.num_neighbors = 0
    config.optimizer.betas = (0.9, 0.95)


def _laptop(config: ConfigDict) -> None:
    """LSM-2's `tiny` in place of the paper's sizes."""
    _lsm1(config)
    config.model.size = "tiny"
    config.optimizer.learning_rate = 1e-3
