"""A patched file runs from C++, with the shared library and libtorch alone."""

import os
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

import codecllm
import torch

from support import ROOT, TestCase, fixture, patched_file

LIBTORCH = ROOT / ".libtorch/torch"


@unittest.skipUnless(shutil.which("g++"), "SKIPPED: g++ is missing")
class CppTest(TestCase):
    def test_a_program_that_opens_the_library_runs_a_patched_file(self) -> None:
        path, _, _ = fixture("mlp")
        with tempfile.TemporaryDirectory() as folder, patched_file(path) as patched:
            program = Path(folder) / "run_patched"
            libraries = f"{LIBTORCH}/lib"
            subprocess.run(
                ["g++", "-std=c++17", "-isystem", f"{LIBTORCH}/include", str(ROOT / "examples/run_patched.cpp")]
                + ["-isystem", f"{LIBTORCH}/include/torch/csrc/api/include", "-o", str(program), f"-L{libraries}"]
                + ["-ltorch_cpu", "-lc10", "-ldl", f"-Wl,-rpath,{libraries}"],
                check=True,
            )
            library = os.environ["CODECLLM_LIBRARY"]
            run = [str(program), library, str(patched), "4", "256"]
            done = subprocess.run(run, capture_output=True, text=True, check=True)
            want = codecllm.load(patched)(torch.linspace(-1, 1, 1024).view(4, 256))
            shape, total = done.stdout.strip().split(" sum ")
            self.assertEqual(shape, str(list(want.shape)))
            self.assertAlmostEqual(float(total), float(want.sum()), places=3)
            # Without the library its file can't be loaded: the operators come from nowhere else.
            without = subprocess.run([str(program), "/no/such.so", *run[2:]], capture_output=True, text=True, check=False)
            self.assertEqual(without.returncode, 1)


if __name__ == "__main__":
    unittest.main()
