"""Fine-tuning: a pre-trained encoder, or a new one, learns to predict a label or the names of events.

    lsm train --config configs/finetune.py:VARIANT --workdir runs/W --config.data.paths=DIR \\
      --config.supervised.task=TASK --config.model.encoder_from=runs/PRETRAINED

TASK is a label (`lsm inspect` lists them) or event_KIND, such as event_activity. Without `model.encoder_from` the same
network learns from scratch. `lsm evaluate --suite probe` scores the run's head on held-out people beside linear probes
and engineered features.
"""

from ml_collections import ConfigDict

from lsm_jax.config import defaults


def tiny(config: ConfigDict) -> None:
    """Begins from `configs/lsm2.py:quickstart`, `open` or `small`, `configs/simclr.py:quickstart` or `small`.

    Data: some hundred labelled windows. Machine: laptop, two cores. Time: minutes; not measured. Expect: not measured.
    """
    _head(config)
    config.model.size = "tiny"


def base(config: ConfigDict) -> None:
    """Begins from `configs/lsm2.py:base`, `paper` apart.

    Data: thousands of labelled windows. Machine: one GPU. Time: not measured. Expect: not measured.
    """
    _head(config)
    config.model.size = "base"
    config.rows.windows_per_row = 4
    config.train.batch_size = 64
    config.optimizer.learning_rate = 1e-4


VARIANTS = {"tiny": tiny, "base": base}


def get_config(variant: str = "") -> ConfigDict:
    """The configuration of a variant; `tiny` if none is named."""
    config = defaults()
    VARIANTS[variant or "tiny"](config)
    return config


def _head(config: ConfigDict) -> None:
    """Few labels: short, with a small learning rate. These are the settings of the probe suite's fine-tuning."""
    config.objective.name = "supervised"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 0.01
    config.train.batch_size = 16
    config.train.duration = "240 steps"
    config.train.log_every = "10 steps"
    config.evaluate.batches = 4
