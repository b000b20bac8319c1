"""Networks outside torch: ONNX files made from a torch module, and run by ONNX Runtime or OpenVINO.

- a file is written only where the runtimes that are there give the module's numbers, within `PARITY`, at three sizes
- one thread each, as everywhere here: work is parallel over videos
- OpenVINO computes in bfloat16 where the processor has it, when it is asked to: half the time of torch's bfloat16 for XFeat
Needs the extra: pip install -e ".[export]"
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vau_lib.workspace import artifacts

RUNTIMES = ("onnx", "openvino")
PARITY = 1e-4  # largest difference of any output, of the torch module's


def check(runtime: str) -> str:
    """Return the name of a runtime; ValueError for none of `RUNTIMES`."""
    if runtime not in RUNTIMES:
        raise ValueError(f"runtime must be torch, {' or '.join(RUNTIMES)}, got {runtime!r}")
    return runtime


class Session:
    """A network in a file: `session(name=array, ...)` -> {name: array}.

    The file is .onnx, or OpenVINO's .xml with its .bin beside it. StoreError for a file that does not load.
    """

    def __init__(self, path: str | Path, runtime: str = "onnx", *, bfloat16: bool = False, threads: int = 1):
        path = Path(path)
        if not path.is_file():
            raise artifacts.StoreError(f"no exported network at {path}: `vau export` writes one")
        try:
            self._run = {"onnx": _onnx, "openvino": _openvino}[check(runtime)](path, bfloat16, threads)
        except ImportError as error:
            raise ValueError(f'runtime {runtime} needs the extra: pip install -e ".[export]" ({error})') from error
        except RuntimeError as error:
            raise artifacts.StoreError(f"{path.name} does not load: {artifacts.one_line(error, 200)}") from error

    def __call__(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        return self._run(inputs)


def _onnx(path: Path, bfloat16: bool, threads: int):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors share no class but Exception
        raise RuntimeError(str(error)) from error
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(None, inputs), strict=True))


def _openvino(path: Path, bfloat16: bool, threads: int):
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "bf16" if bfloat16 else "f32", "INFERENCE_NUM_THREADS": threads}
    settings["ENABLE_CPU_PINNING"] = False  # it ties every process's first thread to processor 0: two workers shared one
    compiled = openvino.Core().compile_model(path, "CPU", {**settings, "PERFORMANCE_HINT": "LATENCY"})
    names = [output.get_any_name() for output in compiled.outputs]
    return lambda inputs: dict(zip(names, (value.copy() for value in compiled(inputs).values()), strict=True))


def write_onnx(
    module: nn.Module, example: Mapping[str, Tensor], outputs: Sequence[str], path: str | Path, *,
    free: Mapping[str, Sequence[int]],
) -> dict[str, float]:  # fmt: skip
    """Write a module as an ONNX file and return {runtime: largest difference of an output}, of the runtimes that are installed.

    ValueError, and no file, where a difference is above `PARITY`.

    Args:
        module: in eval mode; takes `example`'s values in their order.
        example: inputs by name, with 2 or more in every free axis.
        outputs: names of what it returns.
        path: the file, .onnx.
        free: {input: its axes of any size}; axis 0 is the batch, the same of all inputs.
    """
    try:
        import onnxscript  # noqa: F401 (torch's exporter is made of it)
    except ImportError as error:
        raise ValueError('ONNX needs the extra: pip install -e ".[export]"') from error
    dynamic = [{axis: torch.export.Dim.DYNAMIC for axis in free.get(name, ())} for name in example]
    module.eval()
    with torch.no_grad():
        program = torch.onnx.export(
            module, tuple(example.values()), dynamo=True, input_names=[*example], output_names=[*outputs],
            dynamic_shapes=tuple(dynamic), verbose=False,
        )  # fmt: skip
    with artifacts.replacing(path) as temporary:
        program.save(str(temporary), external_data=False)
        found: dict[str, float] = {}
        for given in (example, *(_other_size(example, free, double) for double in (False, True))):
            for name, value in parity(module, given, outputs, temporary).items():
                found[name] = max(value, found.get(name, 0.0))
        if worst := {name: value for name, value in found.items() if not value <= PARITY}:
            raise ValueError(f"{Path(path).name} is not written: its numbers are {worst} from torch's, at most {PARITY} is allowed")
    return found


def _other_size(example: Mapping[str, Tensor], free: Mapping[str, Sequence[int]], double: bool) -> dict[str, Tensor]:
    """Return the example with its free axes doubled or halved: what a graph has wrong at another size shows."""
    found = dict(example)
    for name, axes in free.items():
        for axis in axes:
            x = found[name]
            found[name] = torch.cat([x, x], axis) if double else x.narrow(axis, 0, max(1, x.shape[axis] // 2))
    return {name: x.contiguous() for name, x in found.items()}


def parity(module: nn.Module, example: Mapping[str, Tensor], outputs: Sequence[str], path: str | Path) -> dict[str, float]:
    """Return {runtime: largest absolute difference of any output} of a file and a module, of the runtimes that are installed."""
    with torch.no_grad():
        values = module(*example.values())
    expected = dict(zip(outputs, values if isinstance(values, tuple) else (values,), strict=True))
    found = {}
    for runtime in RUNTIMES:
        try:
            session = Session(path, runtime)
        except ValueError as error:
            if isinstance(error.__cause__, ImportError):
                continue
            raise
        given = session(**{name: value.numpy() for name, value in example.items()})
        found[runtime] = max(float(np.abs(given[n] - v.numpy()).max(initial=0)) for n, v in expected.items())
    return found


def quantise(path: str | Path) -> None:
    """Make an ONNX file's weights of matrix products 8-bit numbers, in its place; ValueError without ONNX Runtime."""
    try:
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError as error:
        raise ValueError(f'8-bit numbers need the extra: pip install -e ".[export]" ({error})') from error
    with artifacts.replacing(path) as temporary:
        quantize_dynamic(str(path), str(temporary), weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"])


def write_openvino(onnx_path: str | Path, path: str | Path) -> None:
    """Write an ONNX file as OpenVINO's pair .xml and .bin, float32."""
    import openvino

    openvino.save_model(openvino.Core().read_model(onnx_path), path, compress_to_fp16=False)
