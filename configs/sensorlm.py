"""SensorLM: windows and captions in one embedding space, and captions from windows (arXiv 2506.09108).

Every variant is trained by

    lsm caption --data DATA --level semantic --tokenizer data/tokenizer.json --vocabulary 1000
    lsm train --config configs/sensorlm.py:VARIANT --workdir runs/VARIANT --config.data.paths=DATA \
        --config.language.tokenizer=data/tokenizer.json

Its docstring says on which DATA and machine, for how long, and what to expect from `lsm evaluate` on held-out people.
`--config.objective.name=clip` (siglip, cap, coca) and `--config.language.levels=all` change what a variant learns.
Captions of all levels are several times as long, and the semantic level comes last: give them
`--config.language.text_length=1024` and a tokenizer learnt with `lsm caption --level all` (docs/reference/captions.md).
Where ours departs from the paper, `docs/explanation/sensorlm.md` says why.
"""

from ml_collections import ConfigDict

from lsm_jax.config import defaults


def small(config: ConfigDict) -> None:
    """Data: `lsm synth --people 2000 --days 8 --out data/synth`.
    Machine: laptop, two cores. Time: 41 minutes.
    Expect: retrieval among 256 days R@1 75 %, zero-shot activities 0.949 AUROC, captions 0.78 activity F1, measured.
    """
    config.objective.name = "coca"
    config.model.size = "tiny"
    config.tokens.patch_channels = 26  # for two cores: 144 tokens a day, each ten minutes of all channels
    config.language.vocab_size = 1000
    config.language.text_length = 96  # 3 captions of 1000 are longer, and cut
    # These let captions depend on the sensors within the hour, and not only sound right (docs/explanation/sensorlm.md).
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


def quickstart(config: ConfigDict) -> None:
    """Data: as small, or fewer people. Machine: laptop, two cores. Time: 8 minutes.
    Expect: with the data of small, retrieval among 256 days R@1 15 %, zero-shot activities 0.76 AUROC, measured.
    """
    small(config)
    config.train.duration = "200 steps"
    config.train.log_every = "10 steps"


def base(config: ConfigDict) -> None:
    """The released SigLIP B and its training (section 4); the timescale of rsqrt is not published.

    Data: millions of days. Machine: GPU or TPU. Time: not measured. Expect: not measured.
    """
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


def coca(config: ConfigDict) -> None:
    """CoCa of size B. Data: as base. Machine: GPU or TPU. Time: not measured. Expect: not measured."""
    base(config)
    config.objective.name = "coca"
    config.model.remat = "dots"


def xl(config: ConfigDict) -> None:
    """CoCa of 1.27B parameters. Data: as base. Machine: pod (`lsm plan`). Time: not measured. Expect: not measured."""
    coca(config)
    config.model.size = "xl"
    config.language.embed_dim = 1024
    config.language.caption_queries = 256  # CoCa's


VARIANTS = {"quickstart": quickstart, "small": small, "base": base, "coca": coca, "xl": xl}


def get_config(variant: str = "") -> ConfigDict:
    """The configuration of a variant; `base` if none is named."""
    config = defaults()
    config.objective.name = "siglip"
    config.language.levels = "semantic"
    VARIANTS[variant or "base"](config)
    return config
