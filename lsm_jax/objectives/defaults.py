"""The learning sections of a configuration, every key with its default."""

from __future__ import annotations

from ml_collections import ConfigDict


def learning_defaults() -> dict[str, ConfigDict]:
    """Sections `tokens`, `masking`, `rows`, `model`, `language` and `objective`."""
    return {
        "tokens": ConfigDict(
            {
                "patch_minutes": 10,
                "patch_channels": 1,
                "partial": "any",  # which partly observed patches are tokens: any, half, all
            }
        ),
        "masking": ConfigDict(
            {
                # (policy, share hidden, weight); the paper's three in equal parts
                "policies": (("random", 0.8, 1.0), ("time", 0.5, 1.0), ("sensor", 0.5, 1.0)),
                "pool": "observed",  # shares are counted over observed units, or over the whole grid
            }
        ),
        "rows": ConfigDict(
            {
                "layout": "packed",  # packed (visible tokens only), fixed_drop (AIM's fixed D) or dense
                "windows_per_row": 1,
                "capacity": 0,  # visible tokens of a row; 0: chosen from missingness and mask mixture
                "targets": 0,  # decoded targets of a row; 0: likewise
                "decoded_share": 1.0,  # of the hidden tokens those decoded, drawn by what they hold, to stand for all
                "inference": 0,  # the most visible tokens the encoder reads to reconstruct after training; 0: all
                "dropped_share": 0.5,  # D of the layout fixed_drop
            }
        ),
        "model": ConfigDict(
            {
                "size": "tiny",
                "decoder": "cross",  # all (the paper's), observed, cross
                "patch_input": "values_and_mask",  # or values (the paper's)
                "compress": True,  # values enter the encoder through asinh
                "context_reach": 3,  # visible neighbours shown to a decoded token; 0: the paper's bare mask token
                "context_width": 256,
                "positions": "learned",  # or sincos (the paper's)
                "attention": "auto",  # by platform and row length; or one by name, see docs/attention.md
                "remat": "none",  # none, dots, full
                "dtype": "auto",  # bfloat16 where the hardware has it, else float32
            }
        ),
        "language": ConfigDict(
            {
                "levels": "",  # of captions: semantic, structural, statistical, joined by +, or all; empty: none
                "events": (),  # kinds that semantic captions speak of: activity, sleep, mood, meal, session; empty: all
                "seed": 0,  # of the captions' words
                "leave_out": (),  # activities to stay unseen: days that hold one have no caption, in training only
                "excerpts": 0.0,  # share of training windows of which a stretch is shown, and spoken of, by itself
                "tokenizer": "",  # file of `lsm caption --tokenizer`; the run keeps a copy
                "vocabulary": 4000,  # rows of the token table, at least the tokenizer's ids
                "length": 256,  # tokens of a caption; longer ones are cut, and counted in text_truncated
                "caption_queries": 16,  # learned queries a caption is written from; 0: the encoder's tokens are
                "embed": 128,  # width of the embeddings of windows and texts
                "scale": 0.0,  # where the learned inverse temperature starts; 0: SigLIP's 10, CLIP's 1 / 0.07
                "bias": -10.0,  # where SigLIP's bias starts
                "contrastive_weight": 1.0,  # of CoCa's two losses
                "caption_weight": 2.0,
                "encoder_from": "",  # folder of a run of LSM-2 whose encoder this one starts from
                "freeze_encoder": False,
            }
        ),
        # masked_reconstruction; clip, siglip, cap, coca
        "objective": ConfigDict({"name": "masked_reconstruction"}),
    }
