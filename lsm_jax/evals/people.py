"""Whether the people to be scored on are people that the run has learnt from.

A split keeps people apart within one dataset, as it was written. Written again with more people, or beside another
dataset of some of the same people, it may put in the test split someone that a run was trained on.
"""

from __future__ import annotations

from pathlib import Path

from lsm_jax.data.store import WindowSource
from lsm_jax.errors import UserError
from lsm_jax.train.workdir import TRAINED_ON, read_trained_on

_MOST_BYTES = 256 * 2**20  # of TRAINED_ON: millions of people


def trained_people(workdir: Path) -> frozenset[str]:
    """The pseudonyms of all people a run was trained on; empty where its folder does not say.

    Raises:
      UserError: the file that says so is damaged or too large.
    """
    file = workdir / TRAINED_ON
    if file.is_file() and file.stat().st_size > _MOST_BYTES:
        raise UserError(f"{file}: {file.stat().st_size} bytes is more than a list of people can have; restore it.")
    return frozenset().union(*read_trained_on(workdir).values())


def check_never_trained_on(trained: frozenset[str], source: WindowSource, split: str) -> None:
    """UserError where the run was trained on someone whose windows these are.

    Args:
      trained: pseudonyms, which are comparable where people were hashed with one salt.
      source: the windows of `split` of a dataset.
    """
    people = {*source.participants}
    if met := len(people & trained):
        raise UserError(
            f"{source.path}: the run was trained on {met} of the {len(people)} people of the {split} split, so this "
            "would not be a score on people held out. Splits change when a dataset is written anew: score on the "
            "dataset as it was when training began (--data), on one of other people, or train a new run on this one."
        )
