"""Compressed linears in PyTorch.

    import codecllm

    module = codecllm.load("patched.pt")                  # a TorchScript file that `codecllm patch` wrote
    report = codecllm.patch_(model, preset="lossless")    # an eager nn.Module, in place
    print(report)

The work is done by the operators of libcodecllm.so, which `load_library` finds.
"""

from .library import load, load_library
from .modules import BUFFER_NAMES, CompressedWeight, Embedding, Linear
from .patching import patch_
from .report import Patched, PatchReport, Skipped

__all__ = [
    "BUFFER_NAMES",
    "CompressedWeight",
    "Embedding",
    "Linear",
    "PatchReport",
    "Patched",
    "Skipped",
    "load",
    "load_library",
    "patch_",
]
