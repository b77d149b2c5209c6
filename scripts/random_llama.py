"""A Hugging Face directory of Llama-3.1-8B's shape with random FP16 weights: for speed where no real model can be had.

Usage: random_llama.py DIR TOKENIZER_DIR [--layers 32]

The tokenizer's files are copied, so that the directory can be served; the answers mean nothing. Needs PyTorch and safetensors, uses
a GPU where there is one. 16 GB, in one file a layer.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "torch_dtype": "float16",
}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "special_tokens_map.json")


def layer_shapes(layer: int) -> dict[str, tuple[int, ...]]:
    """The tensors of one layer."""
    hidden, inner = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    kv = CONFIG["num_key_value_heads"] * CONFIG["head_dim"]
    shapes = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    return {f"model.layers.{layer}.{name}.weight": shape for name, shape in shapes.items()}


def random_tensor(shape: tuple[int, ...]) -> torch.Tensor:
    """Norms are ones; weights have the spread that linears of this width are initialized with."""
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.half)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return (torch.randn(shape, device=device) * 0.02).half().cpu()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--layers", type=int, default=32)
    arguments = parser.parse_args()
    arguments.dir.mkdir(parents=True)
    for name in TOKENIZER_FILES:
        if (arguments.tokenizer / name).exists():
            shutil.copy(arguments.tokenizer / name, arguments.dir)
    table = (CONFIG["vocab_size"], CONFIG["hidden_size"])
    files = [layer_shapes(layer) for layer in range(arguments.layers)]
    files.append({"model.embed_tokens.weight": table, "model.norm.weight": table[1:], "lm_head.weight": table})
    index = {}
    for number, shapes in enumerate(files, 1):
        name = f"model-{number:05}-of-{len(files):05}.safetensors"
        save_file({tensor: random_tensor(shape) for tensor, shape in shapes.items()}, arguments.dir / name)
        index |= dict.fromkeys(shapes, name)
    (arguments.dir / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    config = CONFIG | {"num_hidden_layers": arguments.layers}
    (arguments.dir / "config.json").write_text(json.dumps(config, indent=2))


if __name__ == "__main__":
    main()
