"""TorchScript files that `codecllm patch` wrote, loaded and run by PyTorch."""

import tempfile
import unittest
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import codecllm
import torch
from safetensors.torch import load_file

from support import FIXTURES, MANY_ROWS, TestCase, fixture, flat, inputs, mlp, patched_file, run_cli

# Each with the root of the error's energy that int8 may leave, relative to the output's.
PATCHED = (
    ("scripted", 0.05),
    ("traced", 0.05),
    ("frozen", 0.05),
    ("tied", 0.05),
    ("tied_functional", 0.05),
    ("kv_cache", 0.05),
    ("scripted_fp16", 0.05),
    ("scripted_bf16", 0.05),
    ("bert", 0.05),
    ("bert_traced", 0.05),
    ("gpt", 0.05),
    ("gpt_traced", 0.05),
    ("gpt_frozen", 0.05),
    ("mlp", 0.05),
    ("methods", 0.05),
    ("stateful", 0.05),
    ("dropout_training", 0.05),
    ("twins", 0.05),
    ("signature", 0.05),
    ("weight_read", 0.05),
)


class PatchedFileTest(TestCase):
    def test_outputs_are_close_to_the_dense_ones(self) -> None:
        for name, tolerance in PATCHED:
            path, arguments, want = fixture(name)
            with self.subTest(fixture=name), patched_file(path) as patched:
                self.assertLess(patched.stat().st_size, path.stat().st_size)
                got = flat(codecllm.load(patched)(*arguments))
                self.assert_close(got[0], want[0], tolerance)
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

    def test_lossless_is_bit_for_bit(self) -> None:
        path, _, _ = fixture("mlp")
        x = inputs(MANY_ROWS)
        with patched_file(path, "--preset", "lossless") as patched:
            self.assertTrue(torch.equal(codecllm.load(patched)(x), torch.jit.load(path)(x)))

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

    def test_a_second_patch_is_refused(self) -> None:
        path, _, _ = fixture("mlp")
        with patched_file(path) as patched, self.assertRaisesRegex(AssertionError, "exit status"):
            run_cli("patch", str(patched), "-o", str(patched.with_name("twice.pt")))


if __name__ == "__main__":
    unittest.main()
