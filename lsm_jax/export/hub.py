"""Upload of an export to the Hugging Face Hub. Nothing here runs unless a person asks for it."""

from __future__ import annotations

from pathlib import Path

from lsm_jax.errors import RunError, UserError


def check_hub(repository: str) -> None:
    """UserError where `huggingface_hub` is not installed, or the repository's name is wrong. Asks nobody."""
    try:
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id
    except ImportError:
        raise UserError("--push-to-hub needs huggingface_hub: pip install huggingface_hub") from None
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise UserError(f"--push-to-hub {repository}: {error}") from None


def push_to_hub(folder: Path, repository: str) -> str:
    """Uploads an export to a model repository, which is made, private, if it does not exist; returns its address.

    Raises:
      UserError: see `check_hub`.
      RunError: the Hub refuses or cannot be reached.
    """
    check_hub(repository)
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        address = str(api.create_repo(repository, private=True, exist_ok=True))
        api.upload_folder(repo_id=repository, folder_path=str(folder), commit_message="Export of lsm_jax")
    except Exception as error:  # the Hub's refusals, and those of whatever library of requests it uses
        raise RunError(
            f"{folder} is written, but could not be uploaded to {repository} ({error}). Log in with `hf auth login`, "
            "or set HF_TOKEN, and run it again."
        ) from None
    return address
