"""torch.export, torch.compile, torch.jit and autograd with compressed layers."""

import io
import unittest
from concurrent.futures import ThreadPoolExecutor

import codecllm
import torch

from support import TestCase, inputs, mlp, small


class TracingTest(TestCase):
    def test_export_traces_through(self) -> None:
        model, x = mlp(), inputs(3)
        codecllm.patch_(model)
        rows = torch.export.Dim("rows", min=2, max=64)
        exported = torch.export.export(model, (x,), dynamic_shapes=({0: rows},))
        self.assertEqual(str(exported.graph).count("codecllm.linear"), 3)
        self.assertTrue(torch.equal(exported.module()(inputs(7)), model(inputs(7))))

    def test_export_traces_an_embedding(self) -> None:
        model, ids = small.seeded(small.Bert()), torch.arange(12).reshape(2, 6)
        codecllm.patch_(model, embeddings=True)
        exported = torch.export.export(model, (ids, ids + 1))
        self.assertEqual(str(exported.graph).count("codecllm.embedding"), 2)
        for got, want in zip(exported.module()(ids, ids + 1), model(ids, ids + 1), strict=True):
            self.assertTrue(torch.equal(got, want))

    def test_compile_traces_through(self) -> None:
        for backend in ("eager", "aot_eager"):
            with self.subTest(backend=backend):
                torch.compiler.reset()
                model, x = mlp(), inputs(3)
                codecllm.patch_(model)
                compiled = torch.compile(model, backend=backend, fullgraph=True)
                self.assertTrue(torch.equal(compiled(x), model(x)))
                self.assertTrue(torch.equal(compiled(inputs(5)), model(inputs(5))))

    def test_a_patched_module_can_be_scripted_and_saved(self) -> None:
        model, x = mlp(), inputs(3)
        codecllm.patch_(model)
        file = io.BytesIO()
        torch.jit.save(torch.jit.script(model), file)
        file.seek(0)
        self.assertTrue(torch.equal(torch.jit.load(file)(x), model(x)))

    def test_the_operators_pass_torchs_own_checks(self) -> None:
        model = mlp()
        codecllm.patch_(model)
        weight = model[0].weight
        sample = (inputs(3), *weight.buffers_in_order(), weight.like, model[0].bias.detach(), weight.path)
        torch.library.opcheck(torch.ops.codecllm.linear.default, sample)
        torch.library.opcheck(torch.ops.codecllm.embedding.default, (torch.arange(3), *sample[1:7], weight.path))

    def test_backward_says_that_there_is_no_gradient(self) -> None:
        model = mlp()
        codecllm.patch_(model)
        with torch.enable_grad():
            x = inputs(3).requires_grad_()
            y = model(x)
            with self.assertRaisesRegex(RuntimeError, "no gradient flows through a compressed weight"):
                y.sum().backward()

    def test_two_threads_run_one_module(self) -> None:
        model = mlp()
        codecllm.patch_(model)
        batches = [inputs(rows) for rows in (1, 3, 9, 27)] * 8
        want = [model(x) for x in batches]

        def run(x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                return model(x)

        with ThreadPoolExecutor(2) as pool:
            got = list(pool.map(run, batches))
        for one, other in zip(got, want, strict=True):
            self.assertTrue(torch.equal(one, other))


if __name__ == "__main__":
    unittest.main()
