"""A Llama in GGUF with a GPT-2 style tokenizer -> a Hugging Face directory in FP16.

Usage: gguf_to_hf.py FILE.gguf OUT_DIR [--stop-token TEXT]...
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, dequantize
from numpy.typing import NDArray

from hf_directory import llama_config, special_token, unpermute_rotary, write_json, write_tensors

# GGUF's name of a layer's tensor -> Hugging Face's.
LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OTHER_TENSORS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
# What this converter understands of `llama.*`: a field that is not here could change the maths.
LLAMA_FIELDS = {
    "attention.head_count",
    "attention.head_count_kv",
    "attention.layer_norm_rms_epsilon",
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "vocab_size",
}
SPECIAL = 3  # GGUF's token type of a control token

Fields = dict[str, Any]


def read_fields(reader: GGUFReader) -> Fields:
    """The file's key-value pairs, with anything this converter would get wrong refused."""
    fields = {name: field.contents() for name, field in reader.fields.items()}
    kinds = (fields["general.architecture"], fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"])
    if kinds != ("llama", "gpt2", "smollm"):
        raise SystemExit(f"architecture, tokenizer and its splitting are {kinds}, not ('llama', 'gpt2', 'smollm')")
    unknown = {name for name in fields if name.startswith("llama.")} - {f"llama.{name}" for name in LLAMA_FIELDS}
    if unknown:
        raise SystemExit(f"fields this converter does not know: {sorted(unknown)}")
    if fields["llama.rope.dimension_count"] * fields["llama.attention.head_count"] != fields["llama.embedding_length"]:
        raise SystemExit("a rotary embedding over part of a head is not supported")
    return fields


def hf_path(name: str) -> str:
    """The Hugging Face path of a GGUF tensor."""
    if name in OTHER_TENSORS:
        return OTHER_TENSORS[name]
    _, layer, stem, suffix = name.split(".")
    return f"model.layers.{layer}.{LAYER_TENSORS[stem]}.{suffix}"


def read_tensors(reader: GGUFReader, fields: Fields) -> dict[str, NDArray[np.float32]]:
    """Every tensor in FP32, out_features x in_features, under its Hugging Face path."""
    heads = {"q_proj": fields["llama.attention.head_count"], "k_proj": fields["llama.attention.head_count_kv"]}
    tensors = {}
    for tensor in reader.tensors:
        shape = [int(size) for size in reversed(tensor.shape)]
        weight = dequantize(tensor.data, tensor.tensor_type).astype(np.float32).reshape(shape)
        path = hf_path(tensor.name)
        projection = path.split(".")[-2]
        tensors[path] = unpermute_rotary(weight, heads[projection]) if projection in heads else weight
    return tensors


def config(fields: Fields, tied: bool) -> dict[str, Any]:
    """config.json."""
    hidden, heads = fields["llama.embedding_length"], fields["llama.attention.head_count"]
    return llama_config(
        "fp16",
        hidden_size=hidden,
        intermediate_size=fields["llama.feed_forward_length"],
        num_hidden_layers=fields["llama.block_count"],
        num_attention_heads=heads,
        num_key_value_heads=fields["llama.attention.head_count_kv"],
        head_dim=hidden // heads,
        vocab_size=fields["llama.vocab_size"],
        max_position_embeddings=fields["llama.context_length"],
        rope_theta=fields["llama.rope.freq_base"],
        # Stored in FP32: 9.999999747378752e-06 was written as 1e-5.
        rms_norm_eps=float(f"{fields['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        tie_word_embeddings=tied,
        bos_token_id=fields["tokenizer.ggml.bos_token_id"],
        eos_token_id=fields["tokenizer.ggml.eos_token_id"],
        pad_token_id=fields["tokenizer.ggml.padding_token_id"],
    )


def tokenizer(fields: Fields) -> dict[str, Any]:
    """tokenizer.json: byte-level BPE that splits digits one by one (GGUF's splitting `smollm`)."""
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [special_token(i, text) for i, text in enumerate(tokens) if types[i] == SPECIAL],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": byte_level | {"add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {text: i for i, text in enumerate(tokens)},
            "merges": fields["tokenizer.ggml.merges"],
        },
    }


def tokenizer_config(fields: Fields) -> dict[str, Any]:
    """tokenizer_config.json, with the chat template."""
    tokens = fields["tokenizer.ggml.tokens"]
    roles = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
    named = {f"{role}_token": tokens[fields[f"tokenizer.ggml.{name}_token_id"]] for role, name in roles.items()}
    return named | {
        "tokenizer_class": "GPT2Tokenizer",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": fields["llama.context_length"],
        "chat_template": fields["tokenizer.chat_template"],
    }


def generation_config(fields: Fields, stop_tokens: list[str]) -> dict[str, Any]:
    """generation_config.json: generation ends at the model's own end token and at each of `stop_tokens`."""
    own = fields["tokenizer.ggml.eos_token_id"]
    others = [fields["tokenizer.ggml.tokens"].index(text) for text in stop_tokens]
    return {
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": [own] + [token for token in others if token != own],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("gguf", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--stop-token", action="append", default=[], help="also ends a generation")
    args = parser.parse_args()
    reader = GGUFReader(args.gguf)
    fields = read_fields(reader)
    tensors = read_tensors(reader, fields)
    args.out.mkdir(parents=True)
    write_tensors(args.out / "model.safetensors", tensors, "fp16")
    write_json(args.out / "config.json", config(fields, tied="lm_head.weight" not in tensors))
    write_json(args.out / "tokenizer.json", tokenizer(fields))
    write_json(args.out / "tokenizer_config.json", tokenizer_config(fields))
    write_json(args.out / "generation_config.json", generation_config(fields, args.stop_token))


if __name__ == "__main__":
    main()
