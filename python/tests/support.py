"""What the tests share: models, fixtures, the command line."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
import unittest
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import codecllm

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / ".cache/fixtures/torchscript"
# The models that the fixtures are made of.
sys.path.insert(0, str(ROOT / "tests/fixtures"))

from torchscript import llama, small  # noqa: E402

STORIES15M = ROOT / ".cache/models/stories15M-bf16"
# Above the rows at which a linear on the CPU decodes to scratch and multiplies as torch does, in every dtype.
MANY_ROWS = 1100
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# int8 rounds at 40 dB below the weights; the sum of a few layers is well within this.
INT8_TOLERANCE = 0.05


class TestCase(unittest.TestCase):
    """Without gradients, with the library loaded."""

    @classmethod
    def setUpClass(cls) -> None:
        codecllm.load_library()

    def setUp(self) -> None:
        mode = torch.inference_mode(False)
        no_grad = torch.no_grad()
        for context in (mode, no_grad):
            context.__enter__()
            self.addCleanup(context.__exit__, None, None, None)

    def assert_close(self, got: Tensor, want: Tensor, tolerance: float = INT8_TOLERANCE) -> None:
        """The error's energy relative to what is wanted, and not zero: something was quantized."""
        error = relative_error(got, want)
        self.assertLess(error, tolerance)
        self.assertGreater(error, 0.0)


def relative_error(got: Tensor, want: Tensor) -> float:
    """Root of the error's energy over the energy of what is wanted."""
    return float((got.float() - want.float()).norm() / want.float().norm())


def mlp(dtype: torch.dtype = torch.float32) -> nn.Module:
    """Three linears, two with a bias, of weights that BF16 holds."""
    return small.seeded(small.mlp()).to(dtype)


def inputs(rows: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random activations for `mlp`."""
    return torch.randn(rows, small.HIDDEN, generator=torch.Generator().manual_seed(1)).to(dtype)


def stories15m(tied: bool) -> nn.Module:
    """The Llama of the fixtures, eager."""
    return llama.load(llama.Llama(llama.Config.read(STORIES15M)), STORIES15M, tied)


def fixture(name: str) -> tuple[Path, list[Tensor], list[Tensor]]:
    """The TorchScript file, its example inputs, and the dense outputs."""
    tensors = load_file(FIXTURES / f"{name}.safetensors")

    def numbered(prefix: str) -> list[Tensor]:
        return [tensors[f"{prefix}{at}"] for at in range(sum(key.startswith(prefix) for key in tensors))]

    return FIXTURES / f"{name}.pt", numbered("arg"), numbered("out")


def flat(result: object) -> list[Tensor]:
    """The tensors of a forward's result, in order."""
    if isinstance(result, Tensor):
        return [result]
    return list(result.values() if isinstance(result, dict) else result)


@contextmanager
def patched_file(path: Path, *options: str) -> Iterator[Path]:
    """The file that `codecllm patch` makes of a TorchScript file."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "patched.pt"
        run_cli("patch", str(path), "-o", str(out), *options)
        yield out


@contextmanager
def by_way_of_scratch() -> Iterator[Callable[[Path, list[Tensor]], list[Tensor]]]:
    """Runs a file in a process where compressed linears decode to scratch, then do what torch does with it."""
    spawn = multiprocessing.get_context("spawn")
    with mock.patch.dict(os.environ, CODECLLM_FUSED_ROWS="0"), ProcessPoolExecutor(1, mp_context=spawn) as process:
        yield lambda path, arguments: process.submit(_outputs, path, arguments).result()


def _outputs(path: Path, arguments: list[Tensor]) -> list[Tensor]:
    with torch.no_grad():
        return flat(codecllm.load(path)(*arguments))


def run_cli(*arguments: str) -> str:
    """Runs the command line, and returns its output; its messages are shown where it fails."""
    command = [os.environ.get("CODECLLM", str(ROOT / "target/debug/codecllm")), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(command)}: exit status {done.returncode}\n{done.stderr}")
    return done.stdout
