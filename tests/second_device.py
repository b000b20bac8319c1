"""A second device without hardware: tensors that say they lie elsewhere, hold real numbers, and refuse to meet the CPU's.

As CUDA does, an operation refuses tensors of two devices, but for single numbers, copies and indices; NumPy refuses what is not
on the CPU; a random draw refuses the CPU's generator. The device is called "meta", which autograd knows without any driver.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map_only

DEVICE = torch.device("meta")
ACROSS = ("copy_", "_to_copy", "_index_put_impl_", "index", "index_put", "index_put_", "_has_compatible_shallow_copy_type")


class Elsewhere(Tensor):
    """A tensor on the second device; `inner` has its numbers."""

    @staticmethod
    def __new__(cls, inner: Tensor):
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        return Tensor._make_wrapper_subclass(cls, inner.size(), device=DEVICE, requires_grad=inner.requires_grad, **layout)

    def __init__(self, inner: Tensor):
        self.inner = inner

    def tolist(self) -> list:
        """Return the numbers, as CUDA's tensors do."""
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return _run(operation, args, kwargs or {})


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        return _run(operation, args, kwargs or {})


class _Literals(TorchFunctionMode):
    """Make tensors of Python's numbers on the CPU and move them, since torch makes them below its dispatcher."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function is torch.tensor and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return torch.tensor(*args, **kwargs).to(device)
        if function is Tensor.new_tensor and isinstance(args[0], Elsewhere):
            return torch.tensor(args[1], dtype=args[0].dtype).to(DEVICE)
        if function is Tensor.__setitem__ and isinstance(args[0], Elsewhere) and isinstance(args[1], list):
            args = (args[0], torch.tensor(args[1]).to(DEVICE), args[2])
        return function(*args, **kwargs)


def _run(operation, args, kwargs):
    name, given = operation._schema.name, [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
    there = [x for x in given if isinstance(x, Elsewhere)]
    here = [x for x in given if not isinstance(x, Elsewhere) and x.ndim]
    if there and here and name.removeprefix("aten::") not in ACROSS:
        raise RuntimeError(f"Expected all tensors to be on the same device: {name}, {[tuple(x.shape) for x in here]} on the CPU")
    asked = kwargs.get("device")
    to_there = bool(there) if asked is None else torch.device(asked) == DEVICE
    if name == "aten::copy_":
        to_there = isinstance(args[0], Elsewhere)
    if to_there and kwargs.get("generator") is not None:
        raise RuntimeError(f"Expected a generator of the second device: {name}")
    plain = tree_map_only(Elsewhere, lambda x: x.inner, (args, kwargs))
    if asked is not None:
        plain[1]["device"] = torch.device("cpu")
    result = operation(*plain[0], **plain[1])
    if not to_there:
        return result
    result = tree_map_only(Tensor, Elsewhere, result)
    return return_and_correct_aliasing(operation, args, kwargs, result)


@contextmanager
def second_device() -> Iterator[torch.device]:
    """Inside, `.to(device)`, modules too, puts real tensors elsewhere; inference mode, which they cannot enter, is no_grad."""
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.inference_mode, "__enter__", torch.no_grad.__enter__)
        patch.setattr(torch.inference_mode, "__exit__", torch.no_grad.__exit__)
        try:
            with _Mode(), _Literals():
                yield DEVICE
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(before)


def there(model: nn.Module) -> bool:
    """Say whether all of a model lies elsewhere."""
    return all(isinstance(value, Elsewhere) for value in model.state_dict().values())
