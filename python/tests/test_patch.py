"""Patching an eager module."""

import copy
import gc
import io
import tempfile
import unittest
import weakref
from pathlib import Path

import codecllm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from support import DTYPES, MANY_ROWS, STORIES15M, TestCase, inputs, mlp, relative_error, run_cli, small, stories15m


class OutputTest(TestCase):
    def test_int8_is_close_in_every_dtype(self) -> None:
        for dtype in DTYPES:
            with self.subTest(dtype=dtype):
                model, x = mlp(dtype), inputs(3, dtype)
                want = model(x)
                codecllm.patch_(model)
                got = model(x)
                self.assertEqual(got.dtype, dtype)
                self.assert_close(got, want)

    def test_lossless_is_bit_for_bit_in_every_dtype(self) -> None:
        for dtype in DTYPES:
            with self.subTest(dtype=dtype):
                model, x = mlp(dtype), inputs(MANY_ROWS, dtype)
                want = model(x)
                report = codecllm.patch_(model, preset="lossless")
                self.assertEqual(len(report.patched), 3, report)
                self.assertTrue(torch.equal(model(x), want))

    def test_inputs_have_the_shapes_that_a_linear_takes(self) -> None:
        model = mlp()
        codecllm.patch_(model)
        layer, x = model[0], inputs(6)
        want = layer(x)
        self.assertTrue(torch.equal(layer(x.reshape(2, 3, -1)), want.reshape(2, 3, -1)))
        self.assertEqual(layer(x[0]).shape, (512,))
        self.assertEqual(layer(x[:0]).shape, (0, 512))
        self.assertTrue(torch.equal(layer(x.t().contiguous().t()), want))
        with self.assertRaisesRegex(RuntimeError, "0.weight: input .*255"):
            layer(x[:, 1:])
        with torch.inference_mode():
            self.assertTrue(torch.equal(layer(x), want))

    def test_a_budget_is_met_by_all_together(self) -> None:
        model, x = small.seeded(small.Bert(), exact=False), torch.arange(12).reshape(2, 6)
        want, _ = model(x, torch.ones_like(x))
        report = codecllm.patch_(model, bits=6.0)
        self.assertAlmostEqual(report.bits_per_weight, 6.0, delta=0.03)
        self.assert_close(model(x, torch.ones_like(x))[0], want, 0.2)

    def test_a_llama_with_everything_compressed(self) -> None:
        model, ids = stories15m(tied=True), torch.tensor([[1, 9038, 2501, 263, 931]])
        want = model(ids)
        report = codecllm.patch_(model)
        self.assertEqual(report.skipped, ())
        tied = [one.paths for one in report.patched if len(one.paths) > 1]
        self.assertEqual(tied, [("model.embed_tokens.weight", "lm_head.weight")])
        self.assertIs(model.lm_head.weight, model.model.embed_tokens.weight)
        got = model(ids)
        self.assert_close(got, want)
        self.assertTrue(torch.equal(got[0, -1].argmax(), want[0, -1].argmax()))

    def test_swapped_buffers_are_noticed(self) -> None:
        model, x = small.seeded(small.Twins()), inputs(3)
        want = model(x)
        codecllm.patch_(model)
        self.assert_close(model(x), want)
        a, b = (layer[0] for layer in model.layers)
        a.weight, b.weight = b.weight, a.weight
        self.assertGreater(relative_error(model(x), want), 0.5)


class SelectionTest(TestCase):
    def test_layers_of_one_class_are_chosen_by_path(self) -> None:
        model = small.seeded(small.Twins())
        report = codecllm.patch_(model, exclude=["layers.1.*"])
        self.assertIsInstance(model.layers[0][0], codecllm.Linear)
        self.assertIs(type(model.layers[1][0]), nn.Linear)
        left = [(one.paths, one.reason) for one in report.skipped]
        self.assertEqual(left, [(("layers.1.0.weight",), "excluded by layers.1.*")])

    def test_one_layer_under_two_names_stays_one(self) -> None:
        model = small.seeded(small.Twins())
        report = codecllm.patch_(model, include=["first.*"])
        self.assertEqual(report.patched[0].paths, ("first.weight", "second.weight"))
        self.assertIs(model.first, model.second)

    def test_a_pattern_that_matches_nothing_is_an_error_and_changes_nothing(self) -> None:
        for option in ("include", "exclude"):
            model = mlp()
            with self.subTest(option), self.assertRaisesRegex(ValueError, rf"{option} 9\.\*: matches no matrix"):
                codecllm.patch_(model, **{option: ["0.*", "9.*"]})
            self.assertIs(type(model[0]), nn.Linear)

    def test_one_text_as_patterns_is_an_error(self) -> None:
        with self.assertRaisesRegex(TypeError, "exclude '0.*': is one text, wanted a list"):
            codecllm.patch_(mlp(), exclude="0.*")

    def test_what_cannot_be_patched_is_skipped_with_the_reason(self) -> None:
        model = nn.ModuleDict(
            {
                "attention": nn.MultiheadAttention(128, 2),
                "encoder": nn.TransformerEncoderLayer(128, 2, 128),
                "fp64": nn.Linear(128, 128, dtype=torch.float64),
                "hooked": nn.Linear(128, 128),
                "tiny": nn.Linear(8, 8),
                "meta": nn.Linear(128, 128, device="meta"),
                "lazy": nn.LazyLinear(128),
                "plain": nn.Linear(128, 128),
            }
        )
        model["hooked"].register_forward_hook(lambda *_: None)
        report = codecllm.patch_(model, min_weights=65)
        self.assertEqual([one.paths for one in report.patched], [("plain.weight",)])
        self.assertIn("left: hooked.weight: has hooks", str(report))
        reasons = {one.paths[0]: one.reason for one in report.skipped}
        self.assertIn("NonDynamicallyQuantizableLinear", reasons["attention.out_proj.weight"])
        self.assertIn("TransformerEncoderLayer, reads the weight", reasons["encoder.linear1.weight"])
        self.assertIn("float64", reasons["fp64.weight"])
        self.assertIn("hooks", reasons["hooked.weight"])
        self.assertIn("64 weights, fewer than", reasons["tiny.weight"])
        self.assertEqual(reasons["meta.weight"], "a Parameter on meta, wanted plain weights in memory")
        self.assertEqual(reasons["lazy.weight"], "a UninitializedParameter on cpu, wanted plain weights in memory")

    def test_a_weight_shared_with_what_stays_stays_too(self) -> None:
        model = mlp()
        model.register_buffer("view", model[0].weight[:2])
        report = codecllm.patch_(model)
        left = [(one.paths, one.reason) for one in report.skipped]
        self.assertEqual(left, [(("0.weight",), "shares memory with view")])

    def test_a_table_is_compressed_where_it_is_asked_for_or_a_heads_too(self) -> None:
        tied, untied = stories15m(tied=True), stories15m(tied=False)
        self.assertEqual(
            codecllm.patch_(tied, include=["lm_head.*"]).skipped[0].paths, ("model.layers.0.self_attn.q_proj.weight",)
        )
        self.assertIs(tied.lm_head.weight, tied.model.embed_tokens.weight)
        left = codecllm.patch_(untied, include=["lm_head.*"]).skipped[0]
        self.assertEqual(left.paths, ("model.embed_tokens.weight",))
        self.assertIn("embeddings were not asked for", left.reason)

    def test_weights_that_no_half_type_holds_are_left_by_lossless(self) -> None:
        model = small.seeded(small.mlp(), exact=False)
        report = codecllm.patch_(model, preset="lossless")
        self.assertEqual(report.patched, ())
        self.assertIn("neither BF16 nor FP16", report.skipped[0].reason)
        self.assertIs(type(model[0]), nn.Linear)

    def test_what_does_not_get_smaller_is_left(self) -> None:
        model = mlp(torch.bfloat16)
        noise = torch.randint(-(2**15), 2**15, model[0].weight.shape, dtype=torch.int16)
        model[0].weight.data = noise.view(torch.bfloat16)
        report = codecllm.patch_(model, preset="lossless")
        self.assertEqual([one.paths for one in report.skipped], [("0.weight",)])
        self.assertIn("not be smaller", report.skipped[0].reason)
        self.assertIs(type(model[0]), nn.Linear)

    def test_no_linears_give_an_empty_report(self) -> None:
        report = codecllm.patch_(small.no_linears())
        self.assertEqual((report.patched, report.skipped, report.bits_per_weight), ((), (), 0.0))

    def test_a_second_patch_is_refused(self) -> None:
        model = mlp()
        codecllm.patch_(model, include=["0.*"])
        with self.assertRaisesRegex(ValueError, "0.weight: is compressed already"):
            codecllm.patch_(model)

    def test_a_model_that_reads_a_compressed_weight_is_told_the_cure(self) -> None:
        model = small.seeded(small.WeightRead())
        codecllm.patch_(model)
        with self.assertRaisesRegex(AttributeError, "read.weight: is compressed and has no norm; .* exclude"):
            model(inputs(3))

    def test_a_linear_alone_is_refused(self) -> None:
        with self.assertRaisesRegex(ValueError, "no parent"):
            codecllm.patch_(nn.Linear(128, 128))

    def test_an_unknown_preset_is_an_error_and_changes_nothing(self) -> None:
        model = mlp()
        with self.assertRaisesRegex(RuntimeError, "tiny"):
            codecllm.patch_(model, preset="tiny")
        self.assertIs(type(model[0]), nn.Linear)


class StateTest(TestCase):
    def test_buffers_are_bytes_and_the_dense_weight_is_gone(self) -> None:
        model = mlp()
        report = codecllm.patch_(model)
        names = [f"0.weight.{name}" for name in codecllm.BUFFER_NAMES]
        buffers = dict(model.named_buffers())
        self.assertTrue(all(buffers[name].dtype == torch.uint8 for name in names))
        self.assertEqual({name for name, _ in model.named_parameters()}, {"0.bias", "4.bias"})
        self.assertEqual([key for key in model.state_dict() if key.startswith("0.")], ["0.bias", *names])
        self.assertEqual(sum(buffer.numel() for buffer in buffers.values()), report.compressed_bytes)
        self.assertLess(report.compressed_bytes, report.original_bytes / 3)

    def test_the_dense_weight_is_freed(self) -> None:
        model = mlp()
        dense = weakref.ref(model[0].weight)
        codecllm.patch_(model)
        gc.collect()
        self.assertIsNone(dense())

    def test_casts_leave_the_bytes_alone(self) -> None:
        model, x = mlp(), inputs(3)
        codecllm.patch_(model)
        want = model(x)
        self.assertEqual(copy.deepcopy(model).half()(x.half()).dtype, torch.float16)
        casts = (nn.Module.half, nn.Module.bfloat16, lambda m: m.to(torch.half), lambda m: m.type(torch.half))
        for cast in casts:
            got = cast(copy.deepcopy(model)).float()
            for (name, one), (_, other) in zip(model.named_buffers(), got.named_buffers(), strict=True):
                self.assertEqual(one.dtype, other.dtype, name)
                self.assertTrue(torch.equal(one, other), name)
            self.assertLess(relative_error(got(x), want), 0.01)

    def test_an_embedding_follows_the_dtype(self) -> None:
        model = small.seeded(small.Gpt())
        ids = torch.arange(6)[None]
        want = model.wte(ids)
        codecllm.patch_(model, embeddings=True, preset="lossless")
        self.assertTrue(torch.equal(model.wte(ids), want))
        self.assertTrue(torch.equal(model.half().wte(ids), want.half()))

    def test_the_state_goes_into_another_model_of_other_sizes(self) -> None:
        model, x = mlp(), inputs(3)
        codecllm.patch_(model, preset="lossless")
        want = model(x)
        file = io.BytesIO()
        torch.save(model.state_dict(), file)
        file.seek(0)
        other = small.seeded(small.mlp(), exact=False)
        codecllm.patch_(other)
        other.load_state_dict(torch.load(file, weights_only=True))
        self.assertTrue(torch.equal(other(x), want))

    def test_the_state_goes_through_safetensors(self) -> None:
        model, x = mlp(), inputs(3)
        codecllm.patch_(model)
        other = copy.deepcopy(model)
        for weight in other.modules():
            if isinstance(weight, codecllm.CompressedWeight):
                weight.payload.zero_()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "state.safetensors"
            save_file(model.state_dict(), path)
            other.load_state_dict(load_file(path))
        self.assertTrue(torch.equal(other(x), model(x)))

    def test_the_state_is_what_a_compressed_model_directory_holds(self) -> None:
        model = stories15m(tied=True).bfloat16()
        codecllm.patch_(model)
        state = model.state_dict()
        with tempfile.TemporaryDirectory() as folder:
            run_cli("compress", str(STORIES15M), "-o", f"{folder}/out")
            held = load_file(f"{folder}/out/model.safetensors")
        for name, tensor in held.items():
            self.assertTrue(torch.equal(state[name], tensor), name)
        left = model.load_state_dict(held, strict=False)
        self.assertEqual(left.unexpected_keys, [])
        self.assertEqual(left.missing_keys, [f"lm_head.weight.{name}" for name in codecllm.BUFFER_NAMES])

    def test_a_state_of_another_shape_is_refused(self) -> None:
        model, other = mlp(), nn.Sequential(nn.Linear(128, 128))
        codecllm.patch_(model, include=["0.*"])
        codecllm.patch_(other)
        state = {key: value for key, value in model.state_dict().items() if key.startswith("0.weight")}
        with self.assertRaisesRegex(RuntimeError, r"0\.weight\.header: .*\(512, 256\), wanted \(128, 128\)"):
            other.load_state_dict(state, strict=False)

    def test_training_mode_is_left_alone(self) -> None:
        model = small.seeded(small.Dropout()).train()
        want = model(inputs(3))
        codecllm.patch_(model)
        self.assertTrue(all(module.training for module in model.modules()))
        self.assert_close(model(inputs(3)), want)

    def test_the_bias_stays_a_parameter(self) -> None:
        model = mlp()
        bias = model[0].bias
        codecllm.patch_(model)
        self.assertIs(model[0].bias, bias)


if __name__ == "__main__":
    unittest.main()
