"""Modules that do something out of the ordinary with a weight: patched right, or left alone with a reason."""

import json
import tempfile
import unittest
import zipfile
from pathlib import Path
from unittest import mock

import codecllm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from support import TestCase, run_cli

ROWS, COLUMNS = 96, 64


def weight(rows: int = ROWS, columns: int = COLUMNS, seed: int = 0) -> nn.Parameter:
    """Random, and such that BF16 holds it."""
    values = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    return nn.Parameter(values.bfloat16().float())


def random(*shape: int, seed: int = 5) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Projection(nn.Module):
    """Multiplies by W [in, out] and asks for its rows."""

    def __init__(self) -> None:
        super().__init__()
        self.w = weight(COLUMNS, ROWS)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.w + self.w.size(0)


class NamesTaken(nn.Module):
    """Has attributes named as ours would be."""

    def __init__(self) -> None:
        super().__init__()
        self.w = weight()
        self.w_header = weight(seed=1)
        self.v = weight(seed=2)
        self.v_path = "mine"

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.w) + F.linear(x, self.w_header) + F.linear(x, self.v) + len(self.v_path)


class Two(nn.Module):
    """Two matrices of its own."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.a = weight(seed=seed)
        self.b = weight(seed=seed + 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.a) - 2 * F.linear(x, self.b)


class Pair(nn.Module):
    """Two modules of one class."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Two(1)
        self.second = Two(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) + 3 * self.second(x)


class WithDevice(nn.Module):
    """Holds what no weight is in."""

    def __init__(self) -> None:
        super().__init__()
        self.device = torch.device("cpu")
        self.names = ["a", "b"]
        self.linear = nn.Linear(COLUMNS, ROWS)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.to(self.device))


class WrittenThroughAView(nn.Module):
    """A row of the weight is a buffer of its own, and changes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(COLUMNS, ROWS, bias=False)
        self.register_buffer("row", self.linear.weight.data[0])

    def forward(self, x: Tensor) -> Tensor:
        self.row.add_(1.0)
        return self.linear(x)


class ScriptedAutocast(nn.Module):
    """Casts inside TorchScript, whose pass knows libtorch's operators only."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(COLUMNS, ROWS)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            y = self.linear(x)
        return y


class Renormed(nn.Module):
    """Looks rows up through torch's own function, with its checks."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(ROWS, COLUMNS, padding_idx=3)

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.table.weight, padding_idx=-2) + self.table(ids)


class TiedByHand(nn.Module):
    """Hands the embedding's weight to another module's method, as tracing writes a tied head."""

    class Head(nn.Module):
        def forward(self, x: Tensor, w: Tensor) -> Tensor:
            return F.linear(x, w)

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(ROWS, COLUMNS)
        self.head = self.Head()

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.table(ids), self.table.weight)


class PeculiarTest(TestCase):
    def saved(self, module: nn.Module, **extra: str) -> Path:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        path = Path(folder.name) / "module.pt"
        torch.jit.save(torch.jit.script(module.eval()), path, _extra_files=extra)
        return path

    def patch(self, path: Path, *options: str) -> tuple[torch.jit.ScriptModule, dict]:
        out = path.with_name("patched.pt")
        out.unlink(missing_ok=True)
        report = json.loads(run_cli("--json", "patch", str(path), "-o", str(out), *options))
        return codecllm.load(out), report

    def paths(self, matrices: list[dict]) -> list[str]:
        return sorted(path for matrix in matrices for path in matrix["paths"])

    def test_the_rows_of_a_projection_are_its_inputs(self) -> None:
        x = random(3, COLUMNS)
        path = self.saved(Projection())
        module, report = self.patch(path)
        self.assertIn("number of rows", report["skipped"][0]["reason"])
        self.assertTrue(torch.equal(module(x), codecllm.load(path)(x)))

    def test_names_that_are_taken_are_left_alone(self) -> None:
        x = random(3, COLUMNS)
        path = self.saved(NamesTaken())
        module, report = self.patch(path)
        self.assertEqual(self.paths(report["patched"]), ["w_header"])
        self.assertTrue(all("already" in matrix["reason"] for matrix in report["skipped"]))
        self.assert_close(module(x), codecllm.load(path)(x))

    def test_modules_of_one_class_may_lose_different_matrices(self) -> None:
        x = random(3, COLUMNS)
        path = self.saved(Pair())
        module, report = self.patch(path, "--exclude", "first.a", "--exclude", "second.b")
        self.assertEqual(self.paths(report["patched"]), ["first.b", "second.a"])
        self.assert_close(module(x), codecllm.load(path)(x))

    def test_attributes_that_are_no_tensors_do_not_matter(self) -> None:
        x = random(3, COLUMNS)
        path = self.saved(WithDevice())
        module, _ = self.patch(path)
        self.assert_close(module(x), codecllm.load(path)(x))

    def test_a_weight_that_is_written_through_a_view_stays_dense(self) -> None:
        x = random(3, COLUMNS)
        path = self.saved(WrittenThroughAView())
        module, report = self.patch(path)
        self.assertIn("shares its memory with row", report["skipped"][0]["reason"])
        dense = codecllm.load(path)
        for _ in range(2):
            self.assertTrue(torch.equal(module(x), dense(x)))

    def test_scripted_autocast_stays_as_it_is(self) -> None:
        x = random(3, COLUMNS)
        path = self.saved(ScriptedAutocast())
        module, report = self.patch(path)
        self.assertIn("autocast", report["skipped"][0]["reason"])
        self.assertEqual(module(x).dtype, codecllm.load(path)(x).dtype)

    def test_autocast_around_a_module_casts_whatever_the_rows(self) -> None:
        path = self.saved(WithDevice())
        module, _ = self.patch(path)
        for rows in (1, 48, 49, 2000):
            with torch.autocast("cpu", torch.bfloat16):
                self.assertEqual(module(random(rows, COLUMNS)).dtype, torch.bfloat16)
            self.assertEqual(module(random(rows, COLUMNS)).dtype, torch.float32)

    def test_embeddings_through_functions(self) -> None:
        ids = torch.arange(12).reshape(3, 4)
        for module in (Renormed(), TiedByHand()):
            path = self.saved(module)
            patched, report = self.patch(path, "--embeddings")
            self.assertEqual(self.paths(report["patched"]), ["table.weight"])
            self.assert_close(patched(ids), codecllm.load(path)(ids))

    def test_files_beside_the_module_stay(self) -> None:
        path = self.saved(WithDevice(), **{"config.json": '{"a": 1}'})
        self.patch(path)
        extra = {"config.json": ""}
        torch.jit.load(path.with_name("patched.pt"), _extra_files=extra)
        self.assertEqual(extra["config.json"], b'{"a": 1}')

    def test_the_same_module_makes_the_same_file(self) -> None:
        path = self.saved(WithDevice())
        self.patch(path)
        first = path.with_name("patched.pt").read_bytes()
        self.patch(path)
        self.assertEqual(path.with_name("patched.pt").read_bytes(), first)

    def test_a_record_that_is_cut_is_an_error(self) -> None:
        path = self.saved(WithDevice())
        frozen = path.with_name("frozen.pt")
        torch.jit.save(torch.jit.freeze(torch.jit.load(path)), frozen)
        patched = path.with_name("patched.pt")
        self.patch(path)
        for whole, folder in ((path, "/data/"), (frozen, "/constants/"), (patched, "/data/")):
            for length in (0, 1):
                cut = path.with_name("cut.pt")
                cut_largest_record(whole, cut, folder, length)
                path.with_name("out.pt").unlink(missing_ok=True)
                with self.assertRaisesRegex(AssertionError, "exit status 1"):
                    run_cli("patch", str(cut), "-o", str(path.with_name("out.pt")))


def cut_largest_record(source: Path, target: Path, folder: str, length: int) -> None:
    """A valid archive in which one tensor's bytes are fewer than the index says."""
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as out:
        records = archive.infolist()
        inside = [record for record in records if folder in record.filename]
        largest = max(inside, key=lambda record: record.file_size)
        for record in records:
            data = archive.read(record)
            out.writestr(record.filename, data[:length] if record is largest else data)


class OperatorTest(TestCase):
    """The operators themselves."""

    def buffers(self, lossless: bool = False) -> tuple[list[Tensor], Tensor]:
        target = "lossless" if lossless else "int8"
        return torch.ops.codecllm.compress([weight()], ["w"], [False], target), torch.empty(ROWS, 0, COLUMNS)

    def test_biases_at_one_address_are_told_apart(self) -> None:
        (buffers, like), x = self.buffers(), random(2, COLUMNS)
        biases = random(2 * ROWS)
        for bias in (biases[:ROWS], biases[::2], biases[0].expand(ROWS)):
            plain = torch.ops.codecllm.linear(x, *buffers, like)
            got = torch.ops.codecllm.linear(x, *buffers, like, bias)
            torch.testing.assert_close(got, plain + bias)

    def test_a_weight_refreshed_in_place_is_seen(self) -> None:
        (buffers, like), x = self.buffers(), random(2, COLUMNS)
        torch.ops.codecllm.linear(x, *buffers, like)
        other = torch.ops.codecllm.compress([weight(seed=9)], ["w"], [False])
        want = torch.ops.codecllm.linear(x, *other, like)
        if any(one.shape != new.shape for one, new in zip(buffers, other, strict=True)):
            self.skipTest("of other sizes")
        with torch.inference_mode():
            for one, new in zip(buffers, other, strict=True):
                one.data.copy_(new)
        self.assertTrue(torch.equal(torch.ops.codecllm.linear(x, *buffers, like), want))

    def test_inputs_that_are_not_contiguous_are_multiplied_as_dense_ones(self) -> None:
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            (buffers, like), w, bias = self.buffers(lossless=True), weight().data.to(dtype), random(ROWS).to(dtype)
            hidden = random(4, 1200, 2 * COLUMNS).to(dtype)
            for x in (hidden[:, :, :COLUMNS], hidden[:, ::2, ::2], hidden[:, :, :COLUMNS].transpose(0, 1)):
                got = torch.ops.codecllm.linear(x, *buffers, like, bias)
                self.assertTrue(torch.equal(got, F.linear(x, w, bias)), f"{dtype} {x.stride()}")

    def test_a_projection_adds_in_the_order_of_the_dense_one(self) -> None:
        columns, rows = 300, 500
        w = weight(columns, rows).data
        buffers = torch.ops.codecllm.compress([w.t()], ["w"], [False], "lossless")
        like = torch.empty(rows, 0, columns)
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            for count in (1100, 1107):
                x, bias = random(count, columns).to(dtype), random(rows).to(dtype)
                got = torch.ops.codecllm.projection(x, *buffers, like)
                self.assertTrue(torch.equal(got, x @ w.to(dtype)), f"{dtype} {count}")
                got = torch.ops.codecllm.projection(x, *buffers, like, bias)
                self.assertTrue(torch.equal(got, torch.addmm(bias, x, w.to(dtype))), f"{dtype} {count}")

    def test_wrong_dtypes_and_devices_are_errors(self) -> None:
        (buffers, like), x = self.buffers(), random(2, COLUMNS)
        linear, embedding = torch.ops.codecllm.linear, torch.ops.codecllm.embedding
        wrong = (
            lambda: linear(x.double(), *buffers, like),
            lambda: linear(x.to(torch.uint16), *buffers, like),
            lambda: linear(x, *buffers, like, torch.zeros(ROWS, dtype=torch.int32)),
            lambda: linear(x, *buffers, like, torch.zeros(7, 2, ROWS)),
            lambda: linear(x, *buffers, like.to("meta")),
            lambda: linear(x[:, 1:], *buffers, like),
            lambda: embedding(x, *buffers, like),
            lambda: embedding(torch.tensor([ROWS]), *buffers, like),
        )
        for call in wrong:
            with self.assertRaisesRegex(RuntimeError, "codecllm"):
                call()

    def test_a_forward_of_its_own_is_not_lost(self) -> None:
        module = nn.Sequential(nn.Linear(COLUMNS, ROWS))
        with mock.patch.object(module[0], "forward", lambda x: x + 1):
            report = codecllm.patch_(module)
        self.assertEqual(len(report.patched), 0)


if __name__ == "__main__":
    unittest.main()
