"""The Hugging Face hub: a folder becomes a data set there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aft_factory.errors import AftError, UsageError, needing
from aft_factory.push.card import DATA_FILES


def hub_api(token: str | None) -> Any:
    """Return the hub's client.

    Raises:
        MissingPackage: If huggingface_hub is not installed.
    """
    with needing("uploading", "huggingface_hub"):
        from huggingface_hub import HfApi
    return HfApi(token=token)


def upload(api: Any, folder: Path, repository: str, *, private: bool, quiet: bool) -> str:
    """Make the data set where there is none and upload the folder; return its address.

    Shards of an earlier upload are deleted in the same commit.

    Raises:
        UsageError: If the hub cannot be reached or refuses, in its own words, or the data set is
            there and public although `private` was asked for.
    """
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    if quiet:
        disable_progress_bars()
    try:
        made = api.create_repo(
            repository, repo_type="dataset", private=private or None, exist_ok=True
        )
        if private and not api.dataset_info(repository).private:
            raise UsageError(
                f"{repository} is public already; make it private on the hub, or leave out "
                "--private. Nothing was uploaded"
            )
        api.upload_folder(
            repo_id=repository,
            repo_type="dataset",
            folder_path=folder,
            commit_message="Upload records with aft-factory",
            delete_patterns=DATA_FILES,
        )
    except AftError:
        raise
    except Exception as error:  # of its dozen types the words are clear
        said = " ".join(str(error).split())[:500]
        raise UsageError(f"{repository}: the hub did not take it: {said}") from error
    return str(made)
