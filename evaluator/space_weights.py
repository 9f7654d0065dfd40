"""Where the weights of the feature spaces come from: a named file, a folder of the user, the Hub."""

from pathlib import Path

from huggingface_hub import hf_hub_url

from evaluator.spaces import Space
from modeling.pretrained.downloads import WEIGHTS_VARIABLE, hub_file, in_weights_folder
from modeling.pretrained.teachers import timm_package

FILE = "model.safetensors"  # in timm's repositories on the Hub
BYTES = 4  # of a number there: float32


def find_space_weights(space: Space, path: str | Path | None = None) -> Path:
    """The weight file: `path`, else in the folder TITOK_WEIGHTS, else from the Hub's cache, else downloaded into it.

    In the folder it is called `timm/MODEL/model.safetensors`, `MODEL/model.safetensors` or `MODEL.safetensors`.

    Raises:
        ValueError: timm is not installed.
        FileNotFoundError: the file that was named does not exist, or there is none and it cannot be downloaded.
    """
    timm_package()  # before gigabytes are fetched that nothing can use
    if path:
        if not Path(path).is_file():
            raise FileNotFoundError(f"weights of space {space.name}: {path} does not exist")
        return Path(path)
    repo = f"timm/{space.model}"
    found = in_weights_folder([f"{repo}/{FILE}", f"{space.model}/{FILE}", f"{space.model}.safetensors"])
    if found is not None:
        return found
    try:
        return hub_file(repo, FILE)
    except OSError as error:
        raise FileNotFoundError(
            f"weights of space {space.name} are not on this machine and cannot be downloaded ({error}):"
            f" get {hf_hub_url(repo, FILE)} ({space.parameters} million parameters, about"
            f" {space.parameters * BYTES / 1000:.1f} GB, licence {space.licence}), and name it in"
            f" space_weights.{space.name} or save it as {repo}/{FILE} in the folder that {WEIGHTS_VARIABLE} names"
        ) from error
