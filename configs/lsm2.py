"""LSM-2: masked reconstruction of day windows with real gaps (arXiv 2506.05321).

Every variant is trained by

    lsm train --config configs/lsm2.py:VARIANT --workdir runs/VARIANT --config.data.paths=DATA

Its docstring says on which DATA and machine, for how long, and what to expect from `lsm evaluate`: the squared error
(z-scored) of random imputation on held-out people. Where ours departs from the paper (local context, asinh, learned
positions, shares counted over observed tokens), `docs/explanation/lsm2.md` says why.
"""

from ml_collections import ConfigDict

from lsm_jax.config import defaults


def quickstart(config: ConfigDict) -> None:
    """Data: a synthetic cohort of 100 people, 7 days (`launch/quickstart` runs everything).
    Machine: laptop, two cores. Time: 3 minutes.
    Expect: random imputation 80 % 0.390 (linear interpolation 0.623), measured.
    """
    _laptop(config)
    config.rows.encoder_length = 256
    config.rows.decoder_length = 128
    config.train.batch_size = 16
    config.train.duration = "200 steps"
    config.train.log_every = "10 steps"
    config.evaluate.batches = 2


def small(config: ConfigDict) -> None:
    """Data: `lsm synth --people 2000 --days 8 --seed 0 --out data/synth`.
    Machine: laptop, two cores. Time: two hours, estimated. Expect: not measured.
    """
    _laptop(config, time_block_weight=1.4)
    config.rows.encoder_length = 512
    config.rows.decoder_length = 256
    config.train.duration = "2600 steps"


def open_data(config: ConfigDict) -> None:
    """Data: six open data sets together (docs/how-to/ingest.md). Machine: laptop, two cores. Time: 1 hour.
    Expect: random imputation 80 % 0.525 (iterative imputer 0.593), measured.
    """
    _laptop(config)
    # Windows have from one to 25 channels: rows of several hold nearly all visible tokens.
    config.rows.windows_per_row = 4
    config.rows.encoder_length = 640
    config.rows.decoder_length = 512
    config.train.duration = "1500 steps"


def base(config: ConfigDict, size: str = "base") -> None:
    """The paper's 25M model with our recipe.

    Data: millions of days. Machine: 256 TPU v5e chips (`lsm plan`), or fewer with a smaller train.batch_size.
    Time: 1,516 windows/s on one H100, measured; of the whole run not measured. Expect: not measured.
    """
    config.model.size = size
    config.rows.windows_per_row = 16  # the observed share of windows varies: short rows would be half empty
    config.rows.decoded_share = 0.25  # learns nearly as much per step, and steps are shorter (docs/results/lsm2.md)
    config.model.remat = "none" if size == "base" else "dots"
    config.optimizer.learning_rate = 1e-3 if size == "base" else 3e-4
    config.train.batch_size = 4096
    config.train.duration = "100000 steps"


def paper(config: ConfigDict) -> None:
    """The paper's plain setting (section 3): sin-cos positions, bare mask tokens, decoder over every position.

    Data: as base. Machine: GPU or TPU. Time: not measured. Expect: not measured. The optimizer is that of
    OpenMHC's re-implementation.
    """
    config.model.size = "base"
    config.model.decoder = "all"
    config.model.positions = "sincos"
    config.model.patch_input = "values"
    config.model.asinh_inputs = False
    config.model.rotary = False
    config.model.num_neighbors = 0
    config.masking.share_of = "grid"
    config.rows.layout = "fixed_drop"
    config.optimizer.learning_rate = 1e-4
    config.optimizer.betas = (0.9, 0.95)
    config.train.batch_size = 1024
    config.train.duration = "100000 steps"


def large(config: ConfigDict) -> None:
    """Data: as base. Machine: a TPU or GPU pod (`lsm plan`). Time: not measured. Expect: not measured."""
    base(config, "large")


def billion(config: ConfigDict) -> None:
    """Data: as base. Machine: 1,024 TPU v5p chips (`lsm plan`). Time: not measured. Expect: not measured."""
    base(config, "1b")


VARIANTS = {
    "quickstart": quickstart, "small": small, "open": open_data, "base": base, "paper": paper, "large": large,
    "1b": billion,
}  # fmt: skip


def get_config(variant: str = "") -> ConfigDict:
    """The configuration of a variant; `base` if none is named."""
    config = defaults()
    VARIANTS[variant or "base"](config)
    return config


def _laptop(config: ConfigDict, time_block_weight: float = 0.7) -> None:
    """The recipe found on two cores (docs/results/lsm2.md): short rows, Muon, a high learning rate.

    Args:
      time_block_weight: weight of the masks that hide one block of time (`gap`, `forecast`).
    """
    config.model.size = "tiny"
    # AIM's three masks hide neither the end of a day nor one long block, as forecasts and real gaps do, and always hide
    # most of a window. A model trained on them alone is worse at 30 % hidden than at 50 %.
    config.masking.policies = (
        ("random", 0.8, 1.0),
        ("random", 0.5, 0.7),
        ("random", 0.25, 0.3),
        ("time", 0.5, 1.0),
        ("sensor", 0.5, 1.0),
        ("gap", 0.25, time_block_weight),
        ("forecast", 0.25, time_block_weight),
    )
    # With AdamW at this rate all encoded tokens become nearly equal; Muon's updates are orthogonal and keep them apart.
    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 3e-3
    config.optimizer.betas = (0.9, 0.99)
    config.train.batch_size = 32
    # With the person loss embeddings say more about a person's age (docs/results/lsm2.md).
    config.objective.person_weight = 0.1
    config.rows.eval_max_tokens = 512  # for speed on two cores
