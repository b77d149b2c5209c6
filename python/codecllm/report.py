"""What patching did."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Patched:
    """A weight that is compressed now."""

    paths: tuple[str, ...]
    """Every tensor path that it has: more than one where it is shared."""
    shape: tuple[int, int]
    original_bytes: int
    compressed_bytes: int

    @property
    def bits_per_weight(self) -> float:
        """Everything counted."""
        return 8.0 * self.compressed_bytes / (self.shape[0] * self.shape[1])


@dataclass(frozen=True)
class Skipped:
    """A matrix that stays as it is."""

    paths: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class PatchReport:
    """What was patched, and what was not and why."""

    choice: str
    patched: tuple[Patched, ...]
    skipped: tuple[Skipped, ...]

    @property
    def original_bytes(self) -> int:
        """Bytes of the patched weights before."""
        return sum(one.original_bytes for one in self.patched)

    @property
    def compressed_bytes(self) -> int:
        """Bytes of the patched weights now."""
        return sum(one.compressed_bytes for one in self.patched)

    @property
    def bits_per_weight(self) -> float:
        """Of the patched weights, everything counted; 0 where there are none."""
        weights = sum(one.shape[0] * one.shape[1] for one in self.patched)
        return 8.0 * self.compressed_bytes / weights if weights else 0.0

    def __str__(self) -> str:
        lines = [
            f"{len(self.patched)} weights compressed at {self.choice}: {self.original_bytes} to"
            f" {self.compressed_bytes} bytes, {self.bits_per_weight:.3f} bits a weight; {len(self.skipped)} left"
        ]
        lines += [f"left: {', '.join(one.paths)}: {one.reason}" for one in self.skipped]
        return "\n".join(lines)
