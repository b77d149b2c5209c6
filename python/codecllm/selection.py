"""Which matrices of a module can be compressed."""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

PLAIN = (Tensor, nn.Parameter)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# They hand the weights of their linears to kernels of their own.
WEIGHT_READERS = (nn.MultiheadAttention, nn.TransformerEncoderLayer)


@dataclass(frozen=True)
class Holder:
    """A layer under one of its names."""

    parent: nn.Module
    name: str
    layer: nn.Linear | nn.Embedding
    path: str
    """Of its weight, in full."""


@dataclass(frozen=True, eq=False)
class Matrix:
    """A weight, every layer that holds it, and what else of the module does."""

    weight: Tensor
    holders: tuple[Holder, ...]
    other_paths: tuple[str, ...]

    @property
    def paths(self) -> tuple[str, ...]:
        """The tensor paths that name it in a layer."""
        return tuple(holder.path for holder in self.holders)

    @property
    def has_embedding(self) -> bool:
        """Whether its rows are looked up one by one."""
        return any(isinstance(holder.layer, nn.Embedding) for holder in self.holders)

    def obstacle(self, embeddings: bool, min_weights: int) -> str | None:
        """Why it is no candidate."""
        if self.other_paths:
            return f"shares memory with {self.other_paths[0]}"
        if _span(self.weight) is None:
            return f"a {type(self.weight).__name__} on {self.weight.device}, wanted plain weights in memory"
        if self.weight.dtype not in DTYPES:
            return f"dtype {self.weight.dtype}, wanted float32, float16 or bfloat16"
        if reason := next((reason for holder in self.holders if (reason := _obstacle(holder))), None):
            return reason
        if not embeddings and all(isinstance(holder.layer, nn.Embedding) for holder in self.holders):
            return "is an embedding's table, and embeddings were not asked for"
        if self.weight.numel() < min_weights:
            return f"has {self.weight.numel()} weights, fewer than the {min_weights} asked for"
        return None


def find_matrices(module: nn.Module) -> list[Matrix]:
    """Every matrix that a linear or an embedding holds, in the order of the module, once each."""
    holders: dict[Hashable, list[Holder]] = {}
    for holder in _holders(module):
        holders.setdefault(_place(holder.layer.weight), []).append(holder)
    tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    spans = [(path, span) for path, tensor in tensors if (span := _span(tensor)) is not None]
    return [_matrix(tuple(group), spans) for group in holders.values()]


def _matrix(holders: tuple[Holder, ...], spans: list[tuple[str, range]]) -> Matrix:
    weight = holders[0].layer.weight
    own, paths = _span(weight), {holder.path for holder in holders}
    others = [path for path, span in spans if own and path not in paths and _overlap(span, own)]
    return Matrix(weight, holders, tuple(others))


def _holders(module: nn.Module) -> Iterator[Holder]:
    """All linears and embeddings under all their names."""
    for path, layer in module.named_modules(remove_duplicate=False):
        if isinstance(layer, nn.Linear | nn.Embedding) and isinstance(layer._parameters.get("weight"), Tensor):
            parent, _, name = path.rpartition(".")
            yield Holder(module.get_submodule(parent), name, layer, f"{path}.weight")


def _place(weight: Tensor) -> Hashable:
    """Equal for what is one matrix in memory, whether or not it is one parameter."""
    if _span(weight) is None:
        return id(weight)
    return weight.data_ptr(), weight.device, weight.dtype, weight.shape, weight.stride()


def _span(tensor: Tensor) -> range | None:
    """The addresses of a tensor's elements; None where there are none (yet), or a class of its own hides them."""
    if type(tensor) not in PLAIN or tensor.is_meta or tensor.layout != torch.strided or tensor.numel() == 0:
        return None
    last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return range(tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size())


def _overlap(one: range, other: range) -> bool:
    return one.start < other.stop and other.start < one.stop


def _obstacle(holder: Holder) -> str | None:
    """Why a layer cannot be replaced."""
    layer = holder.layer
    if type(layer) not in (nn.Linear, nn.Embedding):
        return f"of class {type(layer).__name__}, which may use it in other ways than its base class"
    if isinstance(holder.parent, WEIGHT_READERS):
        return f"its parent, {type(holder.parent).__name__}, reads the weight itself"
    if "forward" in vars(layer):
        return "has a forward of its own, which replacing it would lose"
    extra = [*layer._modules, *layer._buffers, *(name for name in layer._parameters if name not in ("weight", "bias"))]
    if extra:
        return f"has more than weight and bias ({extra[0]}), which replacing it would lose"
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    if any(hooks):
        return "has hooks, which replacing it would lose"
    if isinstance(layer, nn.Embedding) and (layer.max_norm is not None or layer.sparse):
        return "an embedding with max_norm or sparse gradients changes its weights"
    return None
