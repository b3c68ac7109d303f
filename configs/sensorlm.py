"""SensorLM: windows and captions in one space, and captions from windows (arXiv 2506.09108).

    lsm caption --data data/synth --level semantic --tokenizer data/synth.tokenizer.json --vocabulary 1000
    lsm train --config configs/sensorlm.py:small --workdir runs/sensorlm --config.data.paths=data/synth \
        --config.language.tokenizer=data/synth.tokenizer.json

| variant | for | on |
|---|---|---|
| quickstart | a first look: some minutes on a small synthetic cohort | laptop CPU |
| small | a synthetic cohort of two thousand people, within the hour | laptop CPU |
| base | the published SigLIP B | GPU or TPU |
| coca | CoCa of size B | GPU or TPU |
| xl | CoCa of 1.27B parameters | pods |

`--config.objective.name=clip` (siglip, cap, coca) and `--config.language.levels=all` change what any of them learns.
Where ours departs from the paper, `docs/sensorlm.md` says why.
"""

from ml_collections import ConfigDict

from lsm_jax.config import defaults

VARIANTS = ("quickstart", "small", "base", "coca", "xl")


def get_config(variant: str = "") -> ConfigDict:
    """The configuration of a variant; `base` where none is named."""
    config = defaults()
    config.objective.name = "siglip"
    config.language.levels = "semantic"
    {"quickstart": _quickstart, "small": _small, "coca": _coca, "xl": _xl}.get(variant, _base)(config)
    return config


def _small(config: ConfigDict) -> None:
    config.objective.name = "coca"
    config.model.size = "tiny"
    config.tokens.patch_channels = 26  # two cores: 144 tokens a day, ten minutes of all channels each
    config.language.vocab_size = 1000
    config.language.text_length = 96  # 3 captions of 1000 are longer, and cut
    # What makes a captioner look at the record within the hour, and not only speak well (docs/sensorlm.md).
    config.language.caption_queries = 0
    config.language.events = ("activity", "sleep")
    config.language.event_crop_prob = 0.7
    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 6e-3
    config.optimizer.betas = (0.9, 0.99)
    config.optimizer.weight_decay = 0.1
    config.train.batch_size = 64
    config.train.duration = "2000 steps"
    config.evaluate.batches = 5


def _quickstart(config: ConfigDict) -> None:
    _small(config)
    config.train.duration = "200 steps"
    config.train.log_every = "10 steps"


def _base(config: ConfigDict) -> None:
    """SPEC section 4: the released model and its training; rsqrt's timescale is not published."""
    config.model.size = "b"
    config.tokens.patch_channels = 2
    config.language.vocab_size = 32000
    config.language.text_length = 256
    config.language.embed_dim = 768
    config.language.caption_queries = 64
    config.optimizer.learning_rate = 5e-4
    config.optimizer.schedule = "rsqrt"
    config.optimizer.warmup = "20 percent"
    config.optimizer.cooldown = "20 percent"
    config.optimizer.betas = (0.9, 0.999)
    config.optimizer.weight_decay = 1e-4
    config.train.batch_size = 1024
    config.train.duration = "50000000 examples"


def _coca(config: ConfigDict) -> None:
    _base(config)
    config.objective.name = "coca"
    config.model.remat = "dots"


def _xl(config: ConfigDict) -> None:
    _coca(config)
    config.model.size = "xl"
    config.language.embed_dim = 1024
    config.language.caption_queries = 256  # CoCa's
