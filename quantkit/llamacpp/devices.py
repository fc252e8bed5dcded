"""The devices llama.cpp can offload to, among them those of RPC servers; in the child process only (see child.py).

libllama is loaded with the ggml libraries it needs, and a lookup in it finds their functions too; opening a ggml
library by its path may load a second copy with its own registry.
"""

import ctypes
import os
import socket
from collections.abc import Sequence
from typing import Any

from quantkit.llamacpp.calls import Failed, llama

_GPU, _INTEGRATED = 1, 2
_RPC = b"RPC"
_PATIENCE = 10.0
_added: set[str] = set()


def _function(name: str, result: Any, *arguments: Any) -> Any:
    function = getattr(llama._lib, name)
    function.restype, function.argtypes = result, arguments
    return function


_pointer = ctypes.c_void_p


class _Props(ctypes.Structure):
    """ggml_backend_dev_props, with room for what a later version adds."""

    _fields_ = (
        *((name, ctypes.c_char_p) for name in ("name", "description")),
        *((name, ctypes.c_size_t) for name in ("memory_free", "memory_total")),
        ("type", ctypes.c_int),
        ("device_id", ctypes.c_char_p),
        ("room", ctypes.c_byte * 256),
    )


_load = _function("ggml_backend_load", _pointer, ctypes.c_char_p)
_registered = _function("ggml_backend_reg_by_name", _pointer, ctypes.c_char_p)
_register = _function("ggml_backend_register", None, _pointer)
_address = _function("ggml_backend_reg_get_proc_address", _pointer, _pointer, ctypes.c_char_p)
_count = _function("ggml_backend_dev_count", ctypes.c_size_t)
_device = _function("ggml_backend_dev_get", _pointer, ctypes.c_size_t)
_name = _function("ggml_backend_dev_name", ctypes.c_char_p, _pointer)
_description = _function("ggml_backend_dev_description", ctypes.c_char_p, _pointer)
_kind = _function("ggml_backend_dev_type", ctypes.c_int, _pointer)
_properties = _function("ggml_backend_dev_get_props", None, _pointer, ctypes.POINTER(_Props))


def add_rpc_servers(endpoints: Sequence[str]) -> None:
    """Add the devices of a separate backend, and those of these servers ("host:port") as llama-bench's --rpc does.

    llama.cpp's variable GGML_BACKEND_PATH names the shared library of a backend that it was not built with: RPC, or a
    kind of GPU such as Vulkan.

    Raises:
        Failed: the backend of RPC is missing, or a server cannot be reached.
    """
    plugin = os.environ.get("GGML_BACKEND_PATH")
    if plugin and plugin not in _added:
        _added.add(plugin)
        _load(os.fsencode(plugin))
    if not endpoints:
        return
    backend = _registered(_RPC)
    if not backend:
        raise Failed(
            "has no RPC backend; install llama-cpp-python with CMAKE_ARGS=-DGGML_RPC=ON, or set GGML_BACKEND_PATH to a"
            " separately built libggml-rpc"
        )
    add = ctypes.CFUNCTYPE(_pointer, ctypes.c_char_p)(_address(backend, b"ggml_backend_rpc_add_server"))
    for endpoint in endpoints:
        if endpoint in _added:
            continue
        _reach(endpoint)
        server = add(endpoint.encode())
        if not server:
            raise Failed(f"found no device at the RPC server {endpoint}")
        _register(server)
        _added.add(endpoint)


def _reach(endpoint: str) -> None:
    """Check that a server answers, because llama.cpp aborts if it does not."""
    host, _, port = endpoint.rpartition(":")
    if not host or not port.isdecimal():
        raise Failed(f"cannot use the RPC server {endpoint!r}; write it as HOST:PORT")
    try:
        socket.create_connection((host, int(port)), _PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise Failed(
            f"could not reach the RPC server {endpoint} ({getattr(error, 'strerror', None) or error})"
        ) from None


def devices(request: dict[str, Any]) -> list[dict[str, Any]]:
    """The devices layers can be offloaded to, in the order of llama.cpp's registry."""
    add_rpc_servers(request["rpc"])
    return offload_devices()


def offload_devices() -> list[dict[str, Any]]:
    """The GPUs that llama.cpp uses: name, description, total and free memory in bytes, and `pci`, such as
    "0000:c1:00.0", or None.

    llama.cpp takes RPC servers first, then the GPUs of this machine; integrated ones only if there is no other
    (src/llama.cpp).
    """
    devices = [_device(i) for i in range(_count())]
    servers = [device for device in devices if _name(device).startswith(_RPC)]
    gpus = [device for device in devices if _kind(device) == _GPU and device not in servers]
    integrated = [device for device in devices if _kind(device) == _INTEGRATED and device not in servers]
    records = []
    for device in servers + (gpus or integrated):
        props = _Props()
        _properties(device, ctypes.byref(props))
        name, description = _name(device).decode(), _description(device).decode()
        pci = props.device_id.decode() if props.device_id else None
        sizes = {"memory": props.memory_total, "free": props.memory_free}
        records.append({"name": name, "description": description, **sizes, "pci": pci})
    return records
