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

DEFAULT_MIN_WEIGHTS = 4096
"""Smaller matrices stay as they are: there the tables and headers weigh as much as what is saved."""


def patch_(
    module: nn.Module,
    preset: str = "int8",
    *,
    bits: float | None = None,
    layout: str = "fast",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    min_weights: int = DEFAULT_MIN_WEIGHTS,
    embeddings: bool = False,
) -> PatchReport:
    """Compresses the weight of every `torch.nn.Linear` in `module`, in place, and reports what it did.

    `preset` is int8, lossless, near, balanced or small; `bits` asks instead for that many bits a weight, 2.5 to 8.5. A
    size is met by all patched weights together, to within what the command line allows. `layout` is fast or small.
    `include` and `exclude` are glob patterns of full tensor paths (`model.layers.*.mlp.*.weight`); an `include` that
    matches no matrix is an error. With `embeddings` the tables of `torch.nn.Embedding` are compressed too.

    A weight that several layers share is compressed once and stays shared, or stays as it is where one of them cannot be
    patched. A module that computes with a layer's weight itself, not by calling the layer, needs that layer excluded.

    Nothing is changed where an error is raised.
    """
    _refuse_patched(module)
    load_library()
    target = preset if bits is None else f"bits {bits}"
    found = find_matrices(module)
    unmatched = _unmatched(found, include, exclude)

    def reason_to_leave(matrix: Matrix) -> str | None:
        reason = matrix.obstacle(embeddings) or _not_chosen(matrix, include, exclude, min_weights)
        return _not_exact(matrix.weight) if reason is None and target == "lossless" else reason

    reasons = [(matrix, reason_to_leave(matrix)) for matrix in found]
    coded = _compress([matrix for matrix, reason in reasons if reason is None], target, layout)
    reasons += [(one.matrix, "coded it would not be smaller") for one in coded if one.size == 0]
    kept = [one for one in coded if one.size > 0]
    for one in kept:
        one.put()
    skipped = [Skipped(path, reason) for matrix, reason in reasons if reason is not None for path in matrix.paths]
    return PatchReport(target, tuple(one.report() for one in kept), tuple(skipped), unmatched)


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


def _compress(matrices: list[Matrix], target: str, layout: str) -> list[_Coded]:
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


def _unmatched(found: list[Matrix], include: Sequence[str], exclude: Sequence[str]) -> tuple[str, ...]:
    """The exclude patterns that match nothing. Errors for an include that does."""
    for patterns in (include, exclude):
        if isinstance(patterns, str):
            raise TypeError(f"{patterns!r}: include and exclude are lists of patterns, not one text")
    paths = [path for matrix in found for path in matrix.paths]

    def matches(pattern: str) -> bool:
        return any(fnmatchcase(path, pattern) for path in paths)

    for pattern in include:
        if not matches(pattern):
            raise ValueError(
                f"include {pattern}: matches no matrix of the module"
                " (tensor paths look like model.layers.0.mlp.up_proj.weight)"
            )
    return tuple(pattern for pattern in exclude if not matches(pattern))


def _not_chosen(matrix: Matrix, include: Sequence[str], exclude: Sequence[str], min_weights: int) -> str | None:
    """Why the caller does not want the matrix. A shared one is chosen by any of its paths, and excluded by any."""
    for path in matrix.paths:
        for pattern in exclude:
            if fnmatchcase(path, pattern):
                return f"excluded by {pattern}"
    if include and not any(fnmatchcase(path, pattern) for path in matrix.paths for pattern in include):
        return "not included"
    if matrix.weight.numel() < min_weights:
        return f"has {matrix.weight.numel()} weights, fewer than {min_weights}"
    return None


def _not_exact(weight: torch.Tensor) -> str | None:
    """Why nothing is to be gained on the weight without loss: FP32 numbers that no 16-bit type holds."""
    if weight.dtype != torch.float32:
        return None
    bits = weight.detach().view(torch.int32)
    for half in (torch.bfloat16, torch.float16):
        if torch.equal(weight.detach().to(half).float().view(torch.int32), bits):
            return None
    return "FP32 weights that neither BF16 nor FP16 holds exactly"
