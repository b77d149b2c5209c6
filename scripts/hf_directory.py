"""Writes a Llama checkpoint the way Hugging Face lays one out.

Shared by the converters; it reads no foreign format itself.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import TensorSpec, serialize_file

# Our name of an element type -> (its name in config.json, its name in the safetensors library).
DTYPES = {"fp32": ("float32", "float32"), "fp16": ("float16", "float16"), "bf16": ("bfloat16", "bfloat16")}


def to_dtype(values: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """Rounds to the nearest, ties to even. BF16 comes back as its bits (uint16): numpy has no such type."""
    if dtype == "bf16":
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.ascontiguousarray(values, np.float16 if dtype == "fp16" else np.float32)


def write_tensors(path: Path, tensors: dict[str, NDArray[np.float32]], dtype: str) -> None:
    """Writes the tensors to a safetensors file in `dtype`; a value that is not finite there is an error."""
    kept: dict[str, NDArray[Any]] = {}  # safetensors reads through raw pointers: these must outlive the call
    for name, values in tensors.items():
        limit = np.finfo(np.float16).max if dtype == "fp16" else np.finfo(np.float32).max
        if not (np.abs(values) <= limit).all():
            raise SystemExit(f"{name}: a weight is NaN, infinite or beyond {dtype}")
        kept[name] = to_dtype(values, dtype)
    specs = {
        name: TensorSpec(dtype=DTYPES[dtype][1], shape=data.shape, data_ptr=data.ctypes.data, data_len=data.nbytes)
        for name, data in kept.items()
    }
    serialize_file(specs, path, {"format": "pt"})
    path.chmod(0o644)  # the library makes it readable by its owner only


def unpermute_rotary(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Reorders the rows of a query or key projection from pairs (0, 1), (2, 3) ... to Hugging Face's two halves.

    llama2.c and GGUF rotate neighbouring rows of a head; Hugging Face rotates row i with row i + head_dim / 2.
    """
    rows = weight.shape[0]
    return weight.reshape(heads, rows // heads // 2, 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write_json(path: Path, value: Any) -> None:
    """Writes readable UTF-8 JSON, escaping nothing that need not be."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def llama_config(dtype: str, **fields: Any) -> dict[str, Any]:
    """A complete config.json for LlamaForCausalLM without biases; `fields` are the model's own."""
    fixed = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "rope_scaling": None,
        "initializer_range": 0.02,
        "use_cache": True,
        "pretraining_tp": 1,
        "torch_dtype": DTYPES[dtype][0],
    }
    return fixed | fields


def special_token(index: int, content: str) -> dict[str, Any]:
    """An entry of tokenizer.json's added_tokens."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": index, "content": content} | flags
