"""Compressing the linears of an eager module in place."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn

from .library import load_library
from .modules import BUFFER_NAMES, CompressedWeight, Embedding, Linear
from .report import Patched, PatchReport, Skipped
from .selection import Matrix, find_matrices


def patch_(
    module: nn.Module,
    preset: str = "int8",
    *,
    bits: float | None = None,
    layout: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    min_weights: int = 0,
    embeddings: bool = False,
) -> PatchReport:
    """Compresses the weight of every `torch.nn.Linear` in `module`, in place, and reports what it did.

    `preset` is int8, lossless, near, balanced or small; `bits` asks instead for that many bits a weight, 2.5 to 8.5. A
    size is met by all patched weights together, to within what the command line allows. `layout` is fast or small, or what suits
    each matrix.
    `include` and `exclude` are glob patterns of full tensor paths (`model.layers.*.mlp.*.weight`); one that matches no
    matrix that could be patched is an error. Matrices of fewer than `min_weights` stay as they are, and so do tables of
    `torch.nn.Embedding` unless `embeddings` asks for them; one that is a head's weight as well is compressed with it.

    A weight that several layers share is compressed once and stays shared, or stays as it is where one of them cannot
    be patched. Where a module computes with a layer's weight itself, not by calling the layer, exclude that layer.

    Nothing is changed where an error is raised.
    """
    _refuse_patched(module)
    load_library()
    target = preset if bits is None else f"bits {bits}"
    found = find_matrices(module)
    reasons = {matrix: matrix.obstacle(embeddings, min_weights) for matrix in found}
    reasons |= _not_chosen([matrix for matrix in found if reasons[matrix] is None], include, exclude)
    if target == "lossless":
        reasons |= {matrix: _not_exact(matrix.weight) for matrix in found if reasons[matrix] is None}
    coded = _compress([matrix for matrix in found if reasons[matrix] is None], target, layout)
    reasons |= {one.matrix: "coded it would not be smaller" for one in coded if one.size == 0}
    kept = [one for one in coded if one.size > 0]
    for one in kept:
        one.put()
    skipped = [Skipped(matrix.paths, reason) for matrix, reason in reasons.items() if reason is not None]
    return PatchReport(target, tuple(one.report() for one in kept), tuple(skipped))


@dataclass(frozen=True)
class _Coded:
    """A matrix and its buffers, before they take its place."""

    matrix: Matrix
    buffers: list[torch.Tensor]

    @property
    def size(self) -> int:
        """Bytes of all buffers; 0 where coding did not make the matrix smaller."""
        return sum(buffer.numel() for buffer in self.buffers)

    def put(self) -> None:
        """Replaces every layer that has the matrix."""
        weight = self.matrix.weight
        buffers = [buffer.to(weight.device) for buffer in self.buffers]
        like = torch.empty(weight.shape[0], 0, weight.shape[1], dtype=weight.dtype, device=weight.device)
        compressed = CompressedWeight(self.matrix.paths[0], buffers, like)
        made: dict[int, nn.Module] = {}
        for holder in self.matrix.holders:
            if id(holder.layer) not in made:
                made[id(holder.layer)] = _replacement(holder.layer, compressed)
            setattr(holder.parent, holder.name, made[id(holder.layer)])

    def report(self) -> Patched:
        """Its line of the report."""
        weight = self.matrix.weight
        rows, columns = weight.shape
        return Patched(self.matrix.paths, (rows, columns), weight.nbytes, self.size)


def _replacement(layer: nn.Module, weight: CompressedWeight) -> nn.Module:
    new = Linear(weight, layer.bias) if isinstance(layer, nn.Linear) else Embedding(weight)
    weight.train(layer.training)
    return new.train(layer.training)


def _compress(matrices: list[Matrix], target: str, layout: str | None) -> list[_Coded]:
    """The matrices coded; a budget is met by all together."""
    if not matrices:
        return []
    weights = [matrix.weight.detach().cpu().contiguous() for matrix in matrices]
    paths = [matrix.paths[0] for matrix in matrices]
    by_row = [matrix.has_embedding for matrix in matrices]
    buffers = torch.ops.codecllm.compress(weights, paths, by_row, target, layout)
    count = len(BUFFER_NAMES)
    return [_Coded(matrix, buffers[count * at : count * (at + 1)]) for at, matrix in enumerate(matrices)]


def _refuse_patched(module: nn.Module) -> None:
    for path, child in module.named_modules():
        if isinstance(child, CompressedWeight):
            raise ValueError(f"{path}: is compressed already; patch a module once, from its dense weights")
    if type(module) in (nn.Linear, nn.Embedding):
        raise ValueError(f"{type(module).__name__}: has no parent to be replaced in; patch the module that holds it")


def _not_chosen(candidates: list[Matrix], include: Sequence[str], exclude: Sequence[str]) -> dict[Matrix, str | None]:
    """Why the patterns leave a matrix, or None. A shared one is included and excluded by any of its paths."""
    paths = [path for matrix in candidates for path in matrix.paths]
    for option, patterns in (("include", include), ("exclude", exclude)):
        if isinstance(patterns, str):
            raise TypeError(f"{option} {patterns!r}: is one text, wanted a list of patterns")
        for pattern in patterns:
            if not any(fnmatchcase(path, pattern) for path in paths):
                raise ValueError(
                    f"{option} {pattern}: matches no matrix that could be patched"
                    " (tensor paths look like model.layers.0.mlp.up_proj.weight)"
                )

    def reason(matrix: Matrix) -> str | None:
        for pattern in exclude:
            if any(fnmatchcase(path, pattern) for path in matrix.paths):
                return f"excluded by {pattern}"
        included = not include or any(fnmatchcase(path, pattern) for path in matrix.paths for pattern in include)
        return None if included else "not included"

    return {matrix: reason(matrix) for matrix in candidates}


def _not_exact(weight: torch.Tensor) -> str | None:
    """Why nothing is to be gained on the weight without loss: FP32 numbers that no 16-bit type holds."""
    if weight.dtype != torch.float32:
        return None
    bits = weight.detach().view(torch.int32)
    for half in (torch.bfloat16, torch.float16):
        if torch.equal(weight.detach().to(half).float().view(torch.int32), bits):
            return None
    return "FP32 weights that neither BF16 nor FP16 holds exactly"
