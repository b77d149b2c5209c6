"""The FP16 matrices of a CTranslate2 model -> OUT_DIR/model.safetensors, under their CTranslate2 names with dots.

Usage: ctranslate2_to_safetensors.py model.bin OUT_DIR

model.bin, little-endian: u32 version, text spec, u32 revision, u32 number of variables, then each variable: text name,
u8 rank, u32 sizes, u8 type (4 is FP16), u32 bytes, values. A text is a u16 length and as many bytes, the last one zero.
"""

import argparse
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hf_directory import write_tensors

VERSION = 6
FP16 = 4

Variable = tuple[str, tuple[int, ...], int, bytes]


class Reader:
    """Takes little-endian fields one after the other."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.offset = 0

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        if self.offset + size > len(self.data):
            raise SystemExit(f"{size} bytes are needed at {self.offset}, the file ends at {len(self.data)}")
        self.offset += size
        return self.data[self.offset - size : self.offset]

    def number(self, code: str) -> int:
        """One integer, `code` as in the struct module."""
        return int(struct.unpack("<" + code, self.take(struct.calcsize(code)))[0])

    def text(self) -> str:
        """A length and a zero-terminated text."""
        return self.take(self.number("H")).removesuffix(b"\0").decode()


def read_variables(data: bytes) -> Iterator[Variable]:
    """Name, shape, type and bytes of every variable."""
    reader = Reader(data)
    version = reader.number("I")
    if version != VERSION:
        raise SystemExit(f"the file's binary version is {version}, this converter reads {VERSION}")
    reader.text()
    reader.number("I")
    for _ in range(reader.number("I")):
        name = reader.text()
        shape = tuple(reader.number("I") for _ in range(reader.number("B")))
        kind = reader.number("B")
        yield name, shape, kind, reader.take(reader.number("I"))


def matrices(data: bytes) -> dict[str, NDArray[np.float32]]:
    """The two-dimensional FP16 weights."""
    return {
        name.replace("/", "."): np.frombuffer(values, "<f2").reshape(shape).astype(np.float32)
        for name, shape, kind, values in read_variables(data)
        if kind == FP16 and len(shape) == 2 and name.endswith("/weight")
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    tensors = matrices(args.model.read_bytes())
    args.out.mkdir(parents=True)
    write_tensors(args.out / "model.safetensors", tensors, "fp16")


if __name__ == "__main__":
    main()
