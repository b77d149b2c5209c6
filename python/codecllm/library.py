"""Finding and loading the shared library that registers the operators."""

import os
from os import PathLike
from pathlib import Path

import torch

FILE_NAME = "libcodecllm.so"
VARIABLE = "CODECLLM_LIBRARY"


def load_library(path: str | PathLike[str] | None = None) -> Path:
    """Loads libcodecllm.so, which registers `torch.ops.codecllm`, and says which file it was.

    Without `path` it is looked for in the environment variable CODECLLM_LIBRARY, beside this package, and in
    target/release and target/debug of the repository that this package lies in. Loading it again does nothing.
    """
    library = Path(path) if path is not None else _find()
    if not library.is_file():
        raise FileNotFoundError(f"{library}: no such file, wanted the path of {FILE_NAME}")
    try:
        torch.ops.load_library(library.resolve())
    except OSError as error:
        raise OSError(
            f"{library}: it does not load into torch {torch.__version__}, it was built for torch 2.11: {error}"
        ) from error
    if not hasattr(torch.ops.codecllm, "linear"):
        raise OSError(f"{library}: it registers no operator codecllm::linear, wanted {FILE_NAME} of codecllm")
    return library


def load(path: str | PathLike[str], device: str | torch.device = "cpu") -> torch.jit.ScriptModule:
    """Loads the library, then a patched TorchScript file onto `device`."""
    load_library()
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file, wanted a TorchScript file")
    return torch.jit.load(path, map_location=device)


def _find() -> Path:
    if named := os.environ.get(VARIABLE):
        return Path(named)
    package = Path(__file__).resolve().parent
    target = package.parents[1] / "target"
    places = [package / FILE_NAME, target / "release" / FILE_NAME, target / "debug" / FILE_NAME]
    for place in places:
        if place.is_file():
            return place
    looked = ", ".join(map(str, places))
    raise FileNotFoundError(
        f"{FILE_NAME}: not found (looked at {looked}); build it with `cargo build --release`, or name it in {VARIABLE}"
    )
