"""TorchScript files that `codecllm patch` wrote, loaded and run by PyTorch."""

import subprocess
import sys
import tempfile
import unittest
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import codecllm
import torch
from safetensors.torch import load_file

from support import (
    FIXTURES,
    ROOT,
    STORIES15M,
    TestCase,
    by_way_of_scratch,
    fixture,
    flat,
    mlp,
    patched_file,
    relative_error,
    run_cli,
)

FIXTURE_NAMES = (
    *("scripted", "scripted_fp16", "scripted_bf16", "traced", "frozen", "tied", "tied_functional", "kv_cache"),
    *("bert", "bert_traced", "gpt", "gpt_traced", "gpt_frozen", "mlp", "methods", "stateful", "dropout_training"),
    *("twins", "signature", "weight_read"),
)


class PatchedFileTest(TestCase):
    def test_outputs_are_close_to_the_dense_ones(self) -> None:
        for name in FIXTURE_NAMES:
            path, arguments, want = fixture(name)
            with self.subTest(fixture=name), patched_file(path) as patched:
                self.assertLess(patched.stat().st_size, path.stat().st_size)
                got = flat(codecllm.load(patched)(*arguments))
                self.assert_close(got[0], want[0])
                for one, other in zip(got, want, strict=True):
                    self.assertEqual((one.shape, one.dtype), (other.shape, other.dtype))

    def test_the_weights_are_bytes_in_named_buffers(self) -> None:
        path, _, _ = fixture("mlp")
        with patched_file(path) as patched:
            module = codecllm.load(patched)
        buffers = dict(module.named_buffers())
        for name in codecllm.BUFFER_NAMES:
            self.assertEqual(buffers[f"0.weight_{name}"].dtype, torch.uint8)
        self.assertEqual({name for name, _ in module.named_parameters()}, {"0.bias", "4.bias"})

    def test_the_buffers_are_those_of_an_eager_patch(self) -> None:
        path, _, _ = fixture("mlp")
        eager = mlp()
        codecllm.patch_(eager)
        with patched_file(path) as patched:
            module = codecllm.load(patched)
        buffers = dict(module.named_buffers())
        for name in codecllm.BUFFER_NAMES:
            for layer in (0, 2, 4):
                want = getattr(eager[layer].weight, name)
                self.assertTrue(torch.equal(buffers[f"{layer}.weight_{name}"], want), name)

    def test_lossless_is_bit_for_bit_by_way_of_scratch(self) -> None:
        with by_way_of_scratch() as outputs_of:
            for name in FIXTURE_NAMES:
                path, arguments, _ = fixture(name)
                with self.subTest(fixture=name), patched_file(path, "--preset", "lossless") as patched:
                    got, want = outputs_of(patched, arguments), outputs_of(path, arguments)
                    for one, other in zip(got, want, strict=True):
                        self.assertTrue(torch.equal(one, other))

    def test_a_llama_without_loss_writes_the_same_tokens(self) -> None:
        path, _, _ = fixture("kv_cache")
        greedy = load_file(FIXTURES / "greedy.safetensors")
        with patched_file(path, "--preset", "lossless") as patched:
            module = codecllm.load(patched)
        ids, keys = greedy["prompt"], torch.zeros(6, 1, 6, 0, 48)
        values, tokens = keys, []
        for _ in range(greedy["tokens"].shape[1]):
            logits, keys, values = module(ids, keys, values)
            ids = logits[:, -1:].argmax(-1)
            tokens.append(ids)
        self.assertTrue(torch.equal(torch.cat(tokens, 1), greedy["tokens"]))

    def test_the_example_runs(self) -> None:
        tokenizer = STORIES15M / "tokenizer.json"
        with patched_file(FIXTURES / "kv_cache.pt") as patched:
            files = (FIXTURES / "kv_cache.pt", patched, FIXTURES / "greedy.safetensors", tokenizer)
            command = [sys.executable, "-s", str(ROOT / "examples/python_interop.py"), *map(str, files)]
            printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        self.assertIn("tokens alike: 32 of 32\n, there was a little girl named Lily.", printed)

    def test_it_is_saved_again_with_the_same_output(self) -> None:
        path, arguments, _ = fixture("bert")
        with patched_file(path) as patched, tempfile.TemporaryDirectory() as folder:
            module = codecllm.load(patched)
            again = Path(folder) / "again.pt"
            module.save(str(again))
            for one, other in zip(codecllm.load(again)(*arguments), module(*arguments), strict=True):
                self.assertTrue(torch.equal(one, other))

    def test_a_cast_leaves_the_bytes_alone(self) -> None:
        path, arguments, want = fixture("mlp")
        with patched_file(path) as patched:
            module = codecllm.load(patched).half()
        self.assertTrue(all(b.dtype == torch.uint8 for n, b in module.named_buffers() if not n.endswith("_like")))
        got = module(arguments[0].half())
        self.assertEqual(got.dtype, torch.float16)
        self.assert_close(got, want[0])

    def test_training_mode_and_methods_are_kept(self) -> None:
        with patched_file(fixture("dropout_training")[0]) as patched:
            self.assertTrue(codecllm.load(patched).training)
        path, (x,), _ = fixture("methods")
        with patched_file(path) as patched:
            module = codecllm.load(patched)
        self.assert_close(module.decode(x, 2.0), torch.jit.load(path).decode(x, 2.0))

    def test_a_state_goes_on(self) -> None:
        path, (x,), _ = fixture("stateful")
        with patched_file(path) as patched:
            module, dense = codecllm.load(patched), torch.jit.load(path)
        for call in (1, 2, 3):
            got, want = module(x), dense(x)
            self.assert_close(got[0], want[0])
            self.assertEqual(int(got[1]), call)

    def test_two_threads_run_one_module(self) -> None:
        path, arguments, _ = fixture("bert")
        with patched_file(path) as patched:
            module = codecllm.load(patched)
        want = module(*arguments)[0]

        def run(_: int) -> torch.Tensor:
            with torch.no_grad():
                return module(*arguments)[0]

        with ThreadPoolExecutor(2) as pool:
            for got in pool.map(run, range(40)):
                self.assertTrue(torch.equal(got, want))

    def test_a_module_without_linears_is_written_as_it_is(self) -> None:
        path, arguments, _ = fixture("no_linears")
        with patched_file(path) as patched:
            self.assertTrue(torch.equal(codecllm.load(patched)(*arguments), torch.jit.load(path)(*arguments)))

    def test_a_second_patch_is_refused(self) -> None:
        path, _, _ = fixture("mlp")
        with patched_file(path) as patched, self.assertRaisesRegex(AssertionError, "is patched already"):
            run_cli("patch", str(patched), "-o", str(patched.with_name("twice.pt")))


if __name__ == "__main__":
    unittest.main()
