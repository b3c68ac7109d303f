"""What the sections of a mapping file share: known keys only, and mistakes that name their key."""

from __future__ import annotations

from typing import Any

import pydantic
from pydantic_core import PydanticCustomError

from lsm_jax.errors import nearest


def mistake(text: str, key: str = "") -> PydanticCustomError:
    """An error about a key (dotted, relative to the section that is validated). `text` follows the key's name."""
    return PydanticCustomError("mistake", "{text}", {"text": text, "key": key})


class Section(pydantic.BaseModel):
    """A section of the file, which refuses keys it does not have."""

    model_config = pydantic.ConfigDict(strict=True, frozen=True, allow_inf_nan=False)

    @pydantic.model_validator(mode="before")
    @classmethod
    def _has_only_known_keys(cls, content: Any) -> Any:
        for key in content if isinstance(content, dict) else ():
            if key not in cls.model_fields:
                keys = ", ".join(cls.model_fields)
                raise mistake(f"is no key of a mapping.{nearest(key, cls.model_fields)} Keys: {keys}", key)
        return content
