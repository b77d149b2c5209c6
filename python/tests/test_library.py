"""Finding and loading the library."""

import os
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import codecllm
import torch

from support import TestCase


class LibraryTest(TestCase):
    def test_registers_the_operators_and_loads_twice(self) -> None:
        first = codecllm.load_library()
        self.assertEqual(codecllm.load_library(), first)
        schema = str(torch.ops.codecllm.linear.default._schema)
        arguments = ", ".join(f"Tensor {name}" for name in codecllm.BUFFER_NAMES)
        self.assertIn(f"codecllm::linear(Tensor x, {arguments}, Tensor like", schema)
        self.assertTrue(torch.ops.codecllm.embedding.default)

    def test_the_variable_names_the_file(self) -> None:
        named = mock.patch.dict(os.environ, {"CODECLLM_LIBRARY": "/nowhere/lib.so"})
        with named, self.assertRaisesRegex(FileNotFoundError, "/nowhere/lib.so"):
            codecllm.load_library()

    def test_without_the_variable_it_says_where_it_looked(self) -> None:
        with mock.patch.dict(os.environ), mock.patch.object(Path, "is_file", return_value=False):
            os.environ.pop("CODECLLM_LIBRARY", None)
            with self.assertRaisesRegex(FileNotFoundError, "target/release/libcodecllm.so.*cargo build --release"):
                codecllm.load_library()

    def test_another_file_is_refused(self) -> None:
        with tempfile.NamedTemporaryFile(suffix=".so") as file:
            path = file.name
            with self.assertRaisesRegex(OSError, f"{path}: it does not load into torch"):
                codecllm.load_library(path)

    def test_a_missing_model_is_named(self) -> None:
        with self.assertRaisesRegex(FileNotFoundError, "nothing.pt: no such file, wanted a TorchScript file"):
            codecllm.load("nothing.pt")


if __name__ == "__main__":
    unittest.main()
