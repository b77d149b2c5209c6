"""What else a GPU can do with the linears of Llama-3.1-8B: FP16 and INT8 weight-only, beside `codecllm bench --device cuda`.

Usage: bench_peers.py [--batch 1,8,16] [--json]

Times one decoding step's linears (q, k, v as one, gate and up as one, 32 layers, and the head) as CUDA graphs, medians, over weights
rotated through more memory than the L2 cache holds. Needs PyTorch with CUDA; INT8 is a scale a row, compiled by torch.compile.
"""

import argparse
import json
import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# out_features x in_features of what a step runs, and how often.
LAYERS = {
    "q, k, v": (6144, 4096, 32),
    "o": (4096, 4096, 32),
    "gate, up": (28672, 4096, 32),
    "down": (4096, 14336, 32),
    "head": (128256, 4096, 1),
}
ROTATED_BYTES = 512 << 20
REPLAYS = 30

Linear = Callable[[Tensor], Tensor]


def fp16(rows: int, cols: int) -> Linear:
    """libtorch's own product."""
    weight = torch.randn(rows, cols, device="cuda", dtype=torch.half)
    return lambda x: F.linear(x, weight)


@torch.compile(mode="max-autotune-no-cudagraphs", dynamic=False)
def int8_product(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """INT8 weights of a scale a row, converted on the way."""
    return F.linear(x, weight.to(x.dtype)) * scale


def int8(rows: int, cols: int) -> Linear:
    """INT8 weight-only, as torch.compile makes it."""
    weight = torch.randint(-127, 128, (rows, cols), device="cuda", dtype=torch.int8)
    scale = torch.rand(rows, device="cuda", dtype=torch.half)
    return lambda x: int8_product(x, weight, scale)


PEERS: dict[str, tuple[Callable[[int, int], Linear], float]] = {"FP16": (fp16, 2), "INT8, torch.compile": (int8, 1)}


def microseconds(make: Callable[[int, int], Linear], weight_bytes: float, rows: int, cols: int, batch: int) -> float:
    """The median time of one product of `batch` rows."""
    count = max(2, int(ROTATED_BYTES / (rows * cols * weight_bytes)))
    linears = [make(rows, cols) for _ in range(count)]
    x = torch.randn(batch, cols, device="cuda", dtype=torch.half)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for linear in linears:
            linear(x)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for linear in linears:
            linear(x)
    times = []
    for _ in range(REPLAYS):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) * 1000 / count)
    return statistics.median(times[REPLAYS // 3 :])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", default="1,8,16", help="rows of the activations")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("error: no GPU that this PyTorch can use; see https://pytorch.org for one with CUDA")
    report = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "steps": []}
    for batch in map(int, args.batch.split(",")):
        for peer, (make, weight_bytes) in PEERS.items():
            layers = {
                layer: microseconds(make, weight_bytes, rows, cols, batch) for layer, (rows, cols, _) in LAYERS.items()
            }
            step_ms = sum(layers[layer] * times for layer, (_, _, times) in LAYERS.items()) / 1000
            report["steps"].append({"peer": peer, "batch": batch, "step_ms": step_ms, "layers_us": layers})
    if args.json:
        print(json.dumps(report))
        return
    print(f"{report['device']}, torch {report['torch']}: linears of one step of an 8B model")
    for step in report["steps"]:
        layers = ", ".join(f"{layer} {us:.1f}" for layer, us in step["layers_us"].items())
        print(f"{step['peer']:20} batch {step['batch']:3}: {step['step_ms']:.2f} ms  (us: {layers})")


if __name__ == "__main__":
    main()
