"""Upload of an export to the Hugging Face Hub. Nothing here runs unless a person asks for it."""

from __future__ import annotations

from pathlib import Path

from lsm_jax.errors import RunError, UserError


def push_to_hub(folder: Path, repository: str) -> str:
    """Uploads an export to a model repository, which is made, private, if it does not exist; returns its address.

    Raises:
      UserError: `huggingface_hub` is not installed, or the repository's name is wrong.
      RunError: the Hub refuses or cannot be reached.
    """
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HFValidationError
    except ImportError:
        raise UserError("--push-to-hub needs huggingface_hub: pip install huggingface_hub") from None
    api = HfApi()
    try:
        address = str(api.create_repo(repository, private=True, exist_ok=True))
        api.upload_folder(repo_id=repository, folder_path=str(folder), commit_message="Export of lsm_jax")
    except HFValidationError as error:
        raise UserError(f"--push-to-hub {repository}: {error}") from None
    except Exception as error:  # the Hub's refusals, and those of whatever library of requests it uses
        raise RunError(
            f"{folder} is written, but could not be uploaded to {repository} ({error}). Log in with `hf auth login`, "
            "or set HF_TOKEN, and run it again."
        ) from None
    return address
