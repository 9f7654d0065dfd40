"""Save models as folders with config.json and model.safetensors, and upload these to the Hugging Face Hub."""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from torch import nn

from common.console import one_line
from modeling.pretrained.loading import load_files
from modeling.pretrained.model_names import HUB_CONFIG, ModelName, open_model
from modeling.tokenizers.base import Tokenizer
from storage.files import write_text
from storage.weights import write_weights

WEIGHTS = "model.safetensors"


def save_pretrained(module: nn.Module, folder: str | Path, **extra: Any) -> Path:
    """Write a tokenizer or generator to a folder that `from_pretrained` and all other loaders take; returns the folder.

    Args:
        module: a loaded model, or one made by `build_tokenizer` or `build_generator`.
        extra: further sections of config.json. Loaders of a generator read `sampling` (keywords of `generate`; its
            attribute `sampling` if not given) and `tokens` (`tokenizer`: as `load_tokenizer` takes it, `class_names`: a
            list).

    Raises:
        ValueError: the module does not know its section, or `extra` cannot be written as JSON.
        OSError: the folder cannot be written.
    """
    section = getattr(module, "section", None)  # set by the factory
    if section is None:
        made = type(module).__name__
        raise ValueError(f"{made} does not know its section; make it by build_tokenizer or build_generator")
    kind = "tokenizer" if isinstance(module, Tokenizer) else "generator"
    if kind == "generator" and module.sampling:
        extra = {"sampling": dict(module.sampling), **extra}
    try:
        # Before any file is touched.
        text = json.dumps({kind: section, **extra}, indent=1, ensure_ascii=False)
    except TypeError as error:
        raise ValueError(f"{HUB_CONFIG} cannot be written: {error}") from error
    folder = Path(folder)
    write_weights(folder / WEIGHTS, module.state_dict())
    write_text(folder / HUB_CONFIG, text + "\n")
    return folder


def from_pretrained(name: ModelName, device: torch.device | str = "cpu") -> nn.Module:
    """A tokenizer or a generator, whichever it is; arguments and errors as `load_tokenizer`."""
    return load_files(open_model(name), device)


def push_to_hub(
    module: nn.Module, repo_id: str, *, private: bool = True, token: str | None = None, **extra: Any
) -> str:
    """Upload what `save_pretrained` writes to the Hugging Face Hub; returns the address of the files.

    Args:
        repo_id: "organisation/name"; created if it does not exist.
        private: whether a created repository is private.
        token: with permission to write; None is the one that huggingface_hub has stored.

    Raises:
        ValueError: as `save_pretrained`, or `repo_id` is not a repository name.
        ConnectionError: the Hub cannot be reached, or refuses.
    """
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(module, folder, **extra)
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            return str(api.upload_folder(repo_id=repo_id, folder_path=folder))
        except (HfHubHTTPError, OSError) as error:
            raise ConnectionError(f"{repo_id} cannot be uploaded: {one_line(error)}") from error
