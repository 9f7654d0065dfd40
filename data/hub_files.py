"""The parquet files of a data set on the Hugging Face Hub."""

from __future__ import annotations

import hashlib
import json
import re

from common.console import warn
from storage.files import user_cache_folder, write_json
from storage.json_files import read_json
from storage.remote_files import RemoteError

# The Hub converts data sets of other formats and keeps the result under this revision.
CONVERTED = "refs/convert/parquet"
_NUMBERED = re.compile(r"(.+?)[-_]\d+(-of-\d+(-[0-9a-f]+)?)?")


def hub_parquet(
    dataset: str, *, split: str, subset: str | None = None, revision: str | None = None
) -> list[str]:
    """URLs (`hf://`) of the parquet files of one split, pinned to the commit that the revision names now.

    Args:
        dataset: `USER/NAME`, or a bare name.
        subset: folder of the files, which the Hub calls the configuration; None if there is one only, or "default".
        revision: branch, tag or commit; None is `main`, or what the Hub has converted if there are no parquet files.

    Raises:
        RemoteError: the Hub cannot be reached and was never asked for these files; there is no such data set, revision,
            subset or split; or it may not be read.
    """
    from huggingface_hub import errors  # slow to import, and data sets on disks need none of it

    what = f"Hub data set {dataset}"
    request = hashlib.sha256(json.dumps([dataset, split, subset, revision]).encode()).hexdigest()[:24]
    kept = user_cache_folder() / "hub" / f"{request}.json"
    try:
        urls = _ask(dataset, split, subset, revision)
    except (errors.GatedRepoError, errors.RepositoryNotFoundError) as error:
        advice = "private and gated data sets need `hf auth login`, and their terms accepted on the Hub"
        raise RemoteError(f"{what} does not exist or may not be read; {advice}") from error
    except errors.RevisionNotFoundError as error:
        raise RemoteError(f"{what} has no revision {revision!r}") from error
    except RemoteError:
        raise
    except (
        Exception
    ) as error:  # of the network, in whatever class: a run goes on with the files it began with
        try:
            urls = read_json(kept, files=list)["files"]
        except (OSError, ValueError):
            raise RemoteError(f"{what}: the Hub cannot be asked for its files: {error}") from error
        warn(
            f"{what}: the Hub cannot be asked ({type(error).__name__}); its files are those of the last time"
        )
        return urls
    try:
        write_json(kept, {"files": urls})
    except OSError as error:
        warn(f"the file list of {what} cannot be kept: {error}")
    return urls


def _ask(dataset: str, split: str, subset: str | None, revision: str | None) -> list[str]:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RevisionNotFoundError

    api = HfApi()
    for tried in [revision] if revision else [None, CONVERTED]:
        try:
            info = api.dataset_info(dataset, revision=tried)
        except RevisionNotFoundError:
            if tried != CONVERTED:
                raise
            continue
        files = [item.rfilename for item in info.siblings or [] if item.rfilename.endswith(".parquet")]
        if files:
            chosen = choose_files(files, what=f"Hub data set {dataset}", split=split, subset=subset)
            return [f"hf://datasets/{dataset}@{info.sha}/{file}" for file in chosen]
    raise RemoteError(f"Hub data set {dataset} has no parquet files, and the Hub has converted none")


def split_of(file: str) -> tuple[str, str]:
    """(subset, split) of a parquet file by its path, "" for no subset.

    `data/train-00000-of-00294.parquet`, `train.parquet` and `train/0000.parquet` all belong to the split "train".
    """
    *folders, name = file.split("/")
    stem = name.removesuffix(".parquet")
    if stem.isdigit() and folders:
        split = folders.pop()
    else:
        numbered = _NUMBERED.fullmatch(stem)
        split = numbered.group(1) if numbered else stem
    return "/".join(folders if folders != ["data"] else []), split


def choose_files(files: list[str], *, what: str, split: str, subset: str | None = None) -> list[str]:
    """The sorted files of one split and subset; RemoteError names those there are."""
    places = {file: split_of(file) for file in files}
    subsets = sorted({own for own, _ in places.values()})
    if subset is None:
        subset = subsets[0] if len(subsets) == 1 else next((s for s in ("", "default") if s in subsets), None)
    if subset not in subsets:
        asked = "" if subset is None else f"no subset {subset!r}, but "
        raise RemoteError(
            f"{what} has {asked}the subsets {', '.join(filter(None, subsets))}; choose one: subset=..."
        )
    splits = sorted({own for place, own in places.values() if place == subset})
    if split not in splits:
        raise RemoteError(f"{what} has no split {split!r}; its splits: {', '.join(splits)}")
    return sorted(file for file, place in places.items() if place == (subset, split))
