"""Layers whose weight is compressed."""

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

BUFFER_NAMES = ("header", "scales", "tables", "tiles", "payload")
"""The buffers of a compressed weight, in the order of the operators' arguments."""

HEADER_BYTES = 56
# Rows and columns behind magic, version, layout and dtype.
_HEADER_SHAPE = struct.Struct("<8x2I")


class CompressedWeight(nn.Module):
    """A compressed matrix as U8 buffers, in the place of the parameter `weight`.

    A buffer's full name is the weight's path, a dot and one of `BUFFER_NAMES`, as in the files that `codecllm compress`
    writes. `like` is empty, [rows, 0, columns], and stands for the weight's shape and dtype; it is not saved. Layers
    that share a weight share this module, so that it stays one when it moves.
    """

    __jit_unused_properties__: ClassVar[list[str]] = ["shape", "dtype", "device"]

    header: Tensor
    scales: Tensor
    tables: Tensor
    tiles: Tensor
    payload: Tensor
    like: Tensor

    def __init__(self, path: str, buffers: Sequence[Tensor], like: Tensor) -> None:
        super().__init__()
        self.path = path
        for name, buffer in zip(BUFFER_NAMES, buffers, strict=True):
            self.register_buffer(name, buffer)
        self.register_buffer("like", like, persistent=False)

    @property
    def shape(self) -> torch.Size:
        """Of the matrix: out features, in features."""
        return torch.Size((self.like.shape[0], self.like.shape[2]))

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights that the matrix stands for."""
        return self.like.dtype

    @property
    def device(self) -> torch.device:
        """Where the buffers are."""
        return self.payload.device

    def compressed_bytes(self) -> int:
        """Bytes of all buffers together."""
        return sum(buffer.numel() for buffer in self.buffers_in_order())

    def buffers_in_order(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """As the operators take them."""
        return self.header, self.scales, self.tables, self.tiles, self.payload

    def extra_repr(self) -> str:
        rows, columns = self.shape
        return f"{rows}, {columns}, dtype={self.dtype}, bytes={self.compressed_bytes()}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "CompressedWeight":
        """Bytes stay bytes: 0 to 255 survive a cast to any float dtype (`module.type(torch.half)`) and back."""
        super()._apply(fn, recurse)
        for name in BUFFER_NAMES:
            buffer = getattr(self, name)
            if buffer.dtype != torch.uint8:
                setattr(self, name, buffer.to(torch.uint8))
        return self

    def __getattr__(self, name: str) -> Any:
        """What a layer has, or the cure for a model that computes with the weight itself."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            cure = f"is compressed and has no {name}; a weight that is read itself is left dense by exclude"
            raise AttributeError(f"{self.__dict__.get('path', 'weight')}: {cure}") from None

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Takes buffers of any size: a weight compressed at another choice has others. Its shape must be the same."""
        header = state_dict.get(prefix + "header")
        shape = None if header is None else _shape_in(header)
        if header is not None and shape != tuple(self.shape):
            error_msgs.append(f"{prefix}header: of a weight {shape or 'unknown'}, wanted {tuple(self.shape)}")
            return
        for name in BUFFER_NAMES:
            saved = state_dict.get(prefix + name)
            if isinstance(saved, Tensor) and saved.dtype == torch.uint8 and saved.dim() == 1:
                setattr(self, name, getattr(self, name).new_empty(saved.shape))
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


def _shape_in(header: Tensor) -> tuple[int, int] | None:
    """The shape that a header says, as docs/format.md has it; None where it is no header."""
    data = bytes(header.flatten().tolist()) if header.dtype == torch.uint8 else b""
    return _HEADER_SHAPE.unpack_from(data) if data.startswith(b"CLLM") and len(data) == HEADER_BYTES else None


class Linear(nn.Module):
    """`y = x W^T + bias` with a compressed weight. No gradient flows through it, so the bias stops asking for one."""

    def __init__(self, weight: CompressedWeight, bias: nn.Parameter | None) -> None:
        super().__init__()
        if bias is not None:
            bias.requires_grad_(False)
        self.out_features, self.in_features = weight.shape
        self.weight = weight
        self.register_parameter("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """As `torch.nn.Linear`."""
        weight = self.weight
        return torch.ops.codecllm.linear(
            x,
            weight.header,
            weight.scales,
            weight.tables,
            weight.tiles,
            weight.payload,
            weight.like,
            self.bias,
            weight.path,
        )

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class Embedding(nn.Module):
    """A table that stays compressed: a row is decoded with its own tile."""

    def __init__(self, weight: CompressedWeight) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = weight.shape
        self.weight = weight

    def forward(self, ids: Tensor) -> Tensor:
        """As `torch.nn.Embedding`."""
        weight = self.weight
        return torch.ops.codecllm.embedding(
            ids, weight.header, weight.scales, weight.tables, weight.tiles, weight.payload, weight.like, weight.path
        )

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}"
