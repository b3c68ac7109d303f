"""Configurations: typed sections (`schema`), and the files and command-line options that set them (`files`)."""

from lsm_jax.config.files import defaults, flatten, from_json, load_config, resolve, to_json, with_changes
from lsm_jax.config.schema import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvaluateConfig,
    LanguageConfig,
    MaskingConfig,
    MeshConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    RowsConfig,
    TokensConfig,
    TrainConfig,
    key_help,
)

__all__ = [
    "CheckpointConfig", "Config", "DataConfig", "EvaluateConfig", "LanguageConfig", "MaskingConfig", "MeshConfig",
    "ModelConfig", "ObjectiveConfig", "OptimizerConfig", "RowsConfig", "TokensConfig", "TrainConfig",
    "defaults", "flatten", "from_json", "key_help", "load_config", "resolve", "to_json", "with_changes",
]  # fmt: skip
