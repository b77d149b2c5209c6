"""A model in llama2.c's format with its tokenizer appended -> a Hugging Face directory.

Usage: llama2c_to_hf.py FILE OUT_DIR [--dtype fp32|bf16|fp16]

FILE is a version-0 checkpoint (seven i32, then FP32 tensors), directly followed by a tokenizer.bin (one i32, then for
each piece its score as f32, its length as i32 and its bytes).
"""

import argparse
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_directory import llama_config, special_token, unpermute_rotary, write_json, write_tensors

HEADER = struct.Struct("<7i")
PIECE = struct.Struct("<fi")
SPECIALS = ("<unk>", "<s>", "</s>")
BYTES_END = len(SPECIALS) + 256  # ids 3..258 are the single bytes
MARKER = "\u2581"  # SentencePiece's visible space


@dataclass(frozen=True)
class Shape:
    """The header, with `tied` taken out of the sign of the vocabulary's size."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    context: int
    tied: bool

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.hidden // self.heads


def read_shape(data: bytes) -> Shape:
    """The first 28 bytes; a negative vocabulary size says that the head is stored, not tied."""
    hidden, intermediate, layers, heads, kv_heads, vocab, context = HEADER.unpack_from(data)
    return Shape(hidden, intermediate, layers, heads, kv_heads, abs(vocab), context, tied=vocab > 0)


def layer_tensors(shape: Shape) -> list[tuple[str, tuple[int, ...]]]:
    """The tensors stored for all layers at once, in file order: Hugging Face's name and the shape in one layer."""
    hidden, wide, kv = shape.hidden, shape.intermediate, shape.kv_heads * shape.head_dim
    return [
        ("input_layernorm", (hidden,)),
        ("self_attn.q_proj", (hidden, hidden)),
        ("self_attn.k_proj", (kv, hidden)),
        ("self_attn.v_proj", (kv, hidden)),
        ("self_attn.o_proj", (hidden, hidden)),
        ("post_attention_layernorm", (hidden,)),
        ("mlp.gate_proj", (wide, hidden)),
        ("mlp.down_proj", (hidden, wide)),
        ("mlp.up_proj", (wide, hidden)),
    ]


class FloatReader:
    """Takes FP32 tensors one after the other."""

    def __init__(self, data: bytes, offset: int) -> None:
        self.data = data
        self.offset = offset

    def take(self, *shape: int) -> NDArray[np.float32]:
        """The next tensor."""
        count = int(np.prod(shape))
        values = np.frombuffer(self.data, "<f4", count, self.offset).reshape(shape)
        self.offset += values.nbytes
        return values


def read_tensors(data: bytes, shape: Shape) -> tuple[dict[str, NDArray[np.float32]], int]:
    """Every tensor under its Hugging Face path, and where the checkpoint ends in `data`."""
    reader = FloatReader(data, HEADER.size)
    tensors = {"model.embed_tokens.weight": reader.take(shape.vocab, shape.hidden)}
    heads = {"self_attn.q_proj": shape.heads, "self_attn.k_proj": shape.kv_heads}
    for name, size in layer_tensors(shape):
        for layer, weight in enumerate(reader.take(shape.layers, *size)):
            path = f"model.layers.{layer}.{name}.weight"
            tensors[path] = unpermute_rotary(weight, heads[name]) if name in heads else weight
    tensors["model.norm.weight"] = reader.take(shape.hidden)
    reader.take(2, shape.context, shape.head_dim // 2)  # cosines and sines, which everyone computes anew
    if not shape.tied:
        tensors["lm_head.weight"] = reader.take(shape.vocab, shape.hidden)
    return tensors, reader.offset


def read_pieces(data: bytes, offset: int, vocab: int) -> list[tuple[str, float]]:
    """The tokenizer's pieces in Hugging Face's spelling, with their scores; it must end where `data` does."""
    offset += 4  # the longest piece's length
    pieces = []
    for index in range(vocab):
        score, length = PIECE.unpack_from(data, offset)
        offset += PIECE.size
        pieces.append((spell(index, data[offset : offset + length]), score))
        offset += length
    if offset != len(data):
        raise SystemExit(f"the tokenizer ends at byte {offset}, the file at {len(data)}")
    return pieces


def spell(index: int, raw: bytes) -> str:
    """llama2.c writes the marker as a space, and specials and bytes in spellings of its own."""
    if index < len(SPECIALS):
        return SPECIALS[index]
    if index < BYTES_END:
        return f"<0x{index - len(SPECIALS):02X}>"
    return raw.decode().replace(" ", MARKER)


def merges(pieces: list[tuple[str, float]], vocab: dict[str, int]) -> list[str]:
    """The BPE merges that act like SentencePiece's scores: each way to split a piece in two, best score first."""
    found = []
    for piece, score in pieces[BYTES_END:]:
        for cut in range(1, len(piece)):
            left, right = vocab.get(piece[:cut], 0), vocab.get(piece[cut:], 0)
            if min(left, right) >= BYTES_END:
                found.append((-score, left, right, f"{piece[:cut]} {piece[cut:]}"))
    return [merge for *_, merge in sorted(found)]


def tokenizer(pieces: list[tuple[str, float]]) -> dict[str, Any]:
    """tokenizer.json, as Hugging Face writes it for Llama 2: <s>, a space, the text; bytes as a last resort."""
    vocab = {piece: index for index, (piece, _) in enumerate(pieces)}
    if len(vocab) != len(pieces):
        raise SystemExit("two pieces of the tokenizer are spelled alike")
    bos, first, second = {"SpecialToken": {"id": "<s>", "type_id": 0}}, sequence("A", 0), sequence("B", 1)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [special_token(index, text) for index, text in enumerate(SPECIALS)],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": MARKER},
                {"type": "Replace", "pattern": {"String": " "}, "content": MARKER},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, first],
            "pair": [bos, first, {"SpecialToken": {"id": "<s>", "type_id": 1}}, second],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": MARKER}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": merges(pieces, vocab),
        },
    }


def sequence(name: str, type_id: int) -> dict[str, Any]:
    """A text's place in the tokenizer's template."""
    return {"Sequence": {"id": name, "type_id": type_id}}


def config(shape: Shape, dtype: str) -> dict[str, Any]:
    """config.json."""
    return llama_config(
        dtype,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocab,
        max_position_embeddings=shape.context,
        rope_theta=10000.0,
        rms_norm_eps=1e-05,
        tie_word_embeddings=shape.tied,
        bos_token_id=1,
        eos_token_id=2,
    )


def tokenizer_config(shape: Shape) -> dict[str, Any]:
    """tokenizer_config.json: no chat template, the model only continues a story."""
    return {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False,
        "legacy": True,
        "model_max_length": shape.context,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--dtype", choices=["fp32", "bf16", "fp16"], default="fp32")
    args = parser.parse_args()
    data = args.data.read_bytes()
    shape = read_shape(data)
    tensors, end = read_tensors(data, shape)
    pieces = read_pieces(data, end, shape.vocab)
    args.out.mkdir(parents=True)
    write_tensors(args.out / "model.safetensors", tensors, args.dtype)
    write_json(args.out / "config.json", config(shape, args.dtype))
    write_json(args.out / "tokenizer.json", tokenizer(pieces))
    write_json(args.out / "tokenizer_config.json", tokenizer_config(shape))
    # The training stories are joined by <s>: the model writes that, not </s>, when one ends.
    write_json(args.out / "generation_config.json", {"bos_token_id": 1, "eos_token_id": [2, 1]})


if __name__ == "__main__":
    main()
