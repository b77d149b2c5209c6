"""Loads a Llama that `codecllm patch` compressed, lets it and the dense one go on with a story, and compares them.

usage: python_interop.py DENSE.pt PATCHED.pt PROMPT.safetensors TOKENIZER.json

    scripts/make_fixtures.sh
    codecllm patch .cache/fixtures/torchscript/kv_cache.pt -o /tmp/patched.pt
    PYTHONPATH=python:.cache/python/torch python3 -s examples/python_interop.py \
        .cache/fixtures/torchscript/kv_cache.pt /tmp/patched.pt .cache/fixtures/torchscript/greedy.safetensors \
        .cache/models/stories15M-bf16/tokenizer.json

prints

    97664730 bytes dense, 49943048 patched
    error of the logits: 0.0095 of their norm
    tokens alike: 32 of 32
    , there was a little girl named Lily. She loved to play outside in the sunshine. One day, she saw a big, red ball in

(the embedding stays dense; `codecllm patch --embeddings` compresses it too).
"""

import json
import sys
import warnings
from pathlib import Path

import codecllm
import torch
from safetensors.torch import load_file
from torch import Tensor

NEW_TOKENS = 32


def generate(module: torch.jit.ScriptModule, prompt: Tensor) -> tuple[Tensor, Tensor]:
    """The logits behind the prompt, and the tokens that the module goes on with, the most probable each time."""
    ids, keys, tokens, first = prompt, torch.zeros(6, 1, 6, 0, 48), [], torch.empty(0)
    values = keys
    for step in range(NEW_TOKENS):
        logits, keys, values = module(ids, keys, values)
        first = logits[:, -1] if step == 0 else first
        ids = logits[:, -1:].argmax(-1)
        tokens.append(ids)
    return first, torch.cat(tokens, 1)[0]


def text(tokens: Tensor, tokenizer: Path) -> str:
    """Pieces of words, joined."""
    vocab = json.loads(tokenizer.read_text(encoding="utf-8"))["model"]["vocab"]
    pieces = {index: piece for piece, index in vocab.items()}
    return "".join(pieces[index] for index in tokens.tolist()).replace("\u2581", " ").strip()


def main() -> None:
    """Command line."""
    if len(sys.argv) != 5:
        raise SystemExit(f"usage: {sys.argv[0]} DENSE.pt PATCHED.pt PROMPT.safetensors TOKENIZER.json")
    dense_path, patched_path, prompt_path, tokenizer = map(Path, sys.argv[1:])
    prompt = load_file(prompt_path)["prompt"]
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    with torch.inference_mode():
        want, dense_tokens = generate(torch.jit.load(dense_path), prompt)
        got, tokens = generate(codecllm.load(patched_path), prompt)
    print(f"{dense_path.stat().st_size} bytes dense, {patched_path.stat().st_size} patched")
    print(f"error of the logits: {float((got - want).norm() / want.norm()):.4f} of their norm")
    print(f"tokens alike: {int((tokens == dense_tokens).long().cumprod(0).sum())} of {NEW_TOKENS}")
    print(text(tokens, tokenizer))


if __name__ == "__main__":
    main()
