"""A device "cuda:0" without a GPU, for scripts in an environment that has torch: its tensors lie in the CPU's memory.

What fails on a real device fails here: an operation on tensors of two devices (copies and indices may mix them, as
tensors without axes), and numpy on a tensor of the device. `pinned` counts the pinned bytes that were asked for.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

CUDA, META, CPU = torch.device("cuda", 0), torch.device("meta"), torch.device("cpu")
pinned = 0
_aten = torch.ops.aten
_MIXED = {"copy_", "_to_copy", "index", "index_put_", "index_put", "_index_put_impl_", "_unsafe_index"}


class OnCuda(torch.Tensor):
    """A tensor of the device. For torch's C++ code it is on "meta", since a torch without CUDA refuses "cuda" there."""

    values: torch.Tensor
    is_cuda = True
    device = CUDA
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, values: torch.Tensor) -> "OnCuda":
        return torch.Tensor._make_wrapper_subclass(
            cls, values.shape, values.stride(), values.storage_offset(), dtype=values.dtype, device=META
        )

    def __init__(self, values: torch.Tensor) -> None:
        self.values = values

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """Creates tensors on the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    global pinned
    name, wrappers, plain = func._schema.name.split("::")[1], {}, []

    def unwrapped(value: Any) -> Any:
        if isinstance(value, OnCuda):
            wrappers[id(value.values)] = value
            return value.values
        if isinstance(value, torch.Tensor) and value.ndim:
            plain.append(value)
        return value

    bare_args, bare = tree_map(unwrapped, args), tree_map(unwrapped, kwargs)
    if wrappers and plain and name not in _MIXED:
        raise RuntimeError(f"{name}: expected all tensors to be on the same device, but found cuda:0 and cpu")
    asked = bare.get("device")
    to_cuda = asked is not None and torch.device(asked).type in ("cuda", "meta")
    if asked is not None:
        bare["device"] = CPU
    if bare.get("pin_memory"):
        bare["pin_memory"] = False
    if func is _aten.mm.dtype:
        left, right, dtype = bare_args
        assert bool(wrappers) and left.dtype == right.dtype == torch.bfloat16
        made = torch.mm(left.to(dtype), right.to(dtype))
    else:
        made = func(*bare_args, **bare)
    if kwargs.get("pin_memory") and not to_cuda:
        pinned += made.numel() * made.element_size()
    on_cuda = to_cuda if asked is not None else bool(wrappers)
    if name == "copy_":
        return args[0]

    def wrapped(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if id(value) in wrappers:
            return wrappers[id(value)]
        return OnCuda(value) if on_cuda else value

    return tree_map(wrapped, made)


@contextmanager
def pretended_cuda(free: int = 80 << 30) -> Iterator[None]:
    """A torch that finds one GPU with `free` bytes."""
    answers: dict[str, Callable[..., Any]] = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "current_device": lambda: 0,
        "mem_get_info": lambda device=None: (free, free),
        "max_memory_reserved": lambda device=None: 1 << 30,
    }
    with ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(patch.object(torch.cuda, name, answer))
        before = torch._C._only_lift_cpu_tensors()
        stack.callback(torch._C._set_only_lift_cpu_tensors, before)
        torch._C._set_only_lift_cpu_tensors(True)
        stack.enter_context(_Mode())
        yield
