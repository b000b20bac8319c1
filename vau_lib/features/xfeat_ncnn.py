"""XFeat's network by ncnn (Tencent, BSD-3): 3 x 3 convolutions in Winograd's form, float32.

- torch, ONNX Runtime and OpenVINO multiply as often as the formula says and are near the processor's peak; Winograd's form of a
  3 x 3 convolution (Lavin and Gray, CVPR 2016) gives the same numbers, up to rounding, with a quarter to a half of the products
- frame by frame: what lies between two layers stays in a core's own cache
- the file is written by us, layer by layer, in ncnn's text and binary format (github.com/Tencent/ncnn, docs/developer-guide)
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor, nn

from vau_lib.features import runtimes
from vau_lib.workspace import artifacts

INPUT, OUTPUT = "gray", "dense"
MAGIC = 7767517  # first line of a .param file
FLOAT32 = bytes(4)  # before a layer's weights in the .bin file: they are plain numbers


class Session:
    """The network in a file: `session(gray=(T, H, W) float32)` -> {"dense": (T, 64, H/8, W/8) float32}; one thread.

    The file is .param, its weights beside it in .bin. ValueError where ncnn is missing, StoreError for a file that does not load.
    """

    def __init__(self, path: str | Path):
        try:
            import ncnn
        except ImportError as error:
            raise ValueError(f'runtime ncnn needs the extra: pip install -e ".[export]" ({error})') from error
        path, self._mat = Path(path), ncnn.Mat
        self._memory = (ncnn.PoolAllocator(), ncnn.PoolAllocator())  # kept between frames, and as long as the network
        self._net = net = ncnn.Net()
        net.opt.num_threads = 1
        net.opt.blob_allocator, net.opt.workspace_allocator = self._memory
        net.opt.use_fp16_storage = net.opt.use_fp16_packed = net.opt.use_fp16_arithmetic = False
        if not path.is_file() or net.load_param(str(path)) or net.load_model(str(path.with_suffix(".bin"))):
            raise artifacts.StoreError(f"{path.name} does not load: no network that ncnn reads")

    def __call__(self, *, gray: np.ndarray) -> dict[str, np.ndarray]:
        return {OUTPUT: np.stack([self._dense(frame) for frame in gray])}

    def _dense(self, frame: np.ndarray) -> np.ndarray:
        even = np.subtract(frame, frame.mean(), dtype=np.float32)
        even /= np.sqrt(np.square(even).mean() + nn.InstanceNorm2d(1).eps * 255**2)  # of frame / 255, as the network has it
        run = self._net.create_extractor()
        run.input(INPUT, self._mat(even[None]))
        failed, dense = run.extract(OUTPUT)
        if failed:
            raise RuntimeError(f"ncnn ended with {failed} on a frame of shape {frame.shape}")
        return np.array(dense)


class _Graph:
    """Layers as ncnn lists them: a line of text each, and their weights in the same order."""

    def __init__(self):
        self.lines, self.weights, self.blobs = [], [], 0

    def add(self, kind: str, inputs: Sequence[str], *options: str, outputs: int = 1) -> list[str]:
        """Append a layer and return the names of what it gives; ncnn lets a name be read once only, so a Split gives several."""
        names = [f"{len(self.lines)}_{place}" for place in range(outputs)] if inputs else [INPUT]
        head = f"{kind} {kind}{len(self.lines)} {len(inputs)} {outputs}"
        self.lines.append(" ".join([head, *inputs, *names, *options]))
        self.blobs += outputs
        return names

    def part(self, module: nn.Module, name: str, relu: bool = False) -> str:
        """Append a module of XFeat, batch norms folded, that reads `name`; return the name of what it gives."""
        if isinstance(module, nn.AvgPool2d):
            return self.add("Pooling", [name], "0=1", f"1={module.kernel_size}", f"2={module.stride}")[0]
        if isinstance(module, nn.Conv2d):
            weight, bias = module.weight, torch.zeros(module.out_channels) if module.bias is None else module.bias
            self.weights += [FLOAT32, weight.detach().numpy().tobytes("C"), bias.detach().numpy().tobytes()]
            sizes = f"0={len(weight)} 1={weight.shape[-1]} 3={module.stride[0]} 4={module.padding[0]} 5=1 6={weight.numel()}"
            return self.add("Convolution", [name], f"{sizes} 9={int(relu)}")[0]
        parts = list(getattr(module, "layer", module))  # kornia's BasicLayer is convolution, batch norm, ReLU
        relu = isinstance(parts[-1], nn.ReLU)
        for part in parts:
            name = name if isinstance(part, nn.Identity | nn.ReLU) else self.part(part, name, relu)
        return name

    def sum(self, *names: str) -> str:
        """Append the sum of two or more."""
        first, *others = names
        for other in others:
            first = self.add("BinaryOp", [first, other], "0=0")[0]
        return first

    def write(self, path: Path) -> None:
        """Write both files; the text, which is looked for, last."""
        text = "\n".join([str(MAGIC), f"{len(self.lines)} {self.blobs}", *self.lines])
        for name, content in ((path.with_suffix(".bin"), b"".join(self.weights)), (path, f"{text}\n".encode())):
            with artifacts.replacing(name) as temporary:
                temporary.write_bytes(content)


def write(net: nn.Module, dense: Callable[[Tensor], Tensor], path: str | Path) -> float:
    """Write XFeat's descriptor network (kornia's `XFeatModel`, eval mode, batch norms folded, float32, on the CPU) as ncnn's files.

    `dense` is what torch makes of gray (T, H, W) by it, (T, 64, H/8, W/8). Return the largest difference from
    that on random frames; ValueError, and no file, where it is above `runtimes.PARITY`.
    """
    path, graph = Path(path), _Graph()
    pixels, skipped = graph.add("Split", graph.add("Input", []), outputs=2)
    quarter = graph.part(net.block2, graph.sum(graph.part(net.block1, pixels), graph.part(net.skip1, skipped)))
    eighth, finer = graph.add("Split", [graph.part(net.block3, quarter)], outputs=2)
    sixteenth, coarser = graph.add("Split", [graph.part(net.block4, finer)], outputs=2)
    coarse = graph.part(net.block5, coarser)
    levels = [graph.add("Interp", [level], f"0=2 1={by} 2={by}")[0] for level, by in ((sixteenth, "2.0"), (coarse, "4.0"))]
    last = graph.part(net.block_fusion, graph.sum(eighth, *levels))
    graph.lines[-1] = graph.lines[-1].replace(f" {last} ", f" {OUTPUT} ")
    frames = 255 * torch.rand(2, 96, 128, generator=torch.Generator().manual_seed(0))
    with TemporaryDirectory() as scratch, torch.inference_mode():
        graph.write(Path(scratch, path.name))
        found = float(np.abs(Session(Path(scratch, path.name))(gray=frames.numpy())[OUTPUT] - dense(frames).numpy()).max())
    if not found <= runtimes.PARITY:
        raise ValueError(
            f"{path.name} is not written: its numbers are {found:.1e} from torch's, at most {runtimes.PARITY} is allowed"
        )
    graph.write(path)
    return found
