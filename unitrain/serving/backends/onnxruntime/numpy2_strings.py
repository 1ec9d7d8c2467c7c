"""Strings in the wheel's stub under numpy 2.

The stub was built for numpy 1. It reads a dtype's item size at the position of numpy 2's flags, and takes every item
for 0 bytes long. Numbers bypass this by DLPack, which has no strings. For strings there are two fixes:

- Incoming bytes are an array with strides of 0, which the stub computed. The stub creates the array by a function of
  numpy, whose address it reads once from numpy's table of C functions. The table is replaced while it reads: the
  function there leaves the strides to numpy.
- Outgoing bytes are measured by that item size. They have a separate dtype, whose flags are 1 while the stub measures.

Both fixes are tested when a model with strings is loaded. If they fail, the model is refused.
This file is copied beside `model.py` and runs inside Triton's Python stub.
"""

import ctypes
import struct
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

Array = np.ndarray[Any, Any]

_TABLE = "_ARRAY_API"
_TABLE_LENGTH = 300
"""Number of entries of numpy 1's table of C functions, which a stub built for it may read."""
_NEW_FROM_DESCR = 94
_FLAGS_OFFSET, _ITEM_SIZE_OFFSET = 32, 40
"""Offsets in numpy 2's PyArray_Descr, part of its stable ABI, on a 64-bit machine."""

_pointer = ctypes.c_void_p
_NewFromDescr = ctypes.PYFUNCTYPE(
    _pointer, _pointer, _pointer, ctypes.c_int, _pointer, _pointer, _pointer, ctypes.c_int, _pointer
)
"""Type of PyArray_NewFromDescr: type, dtype, ndim, dims, strides, data, flags, owner."""
_kept: list[Any] = []
"""Objects whose addresses the stub keeps."""

_measured: list[tuple[Any, Any]] = []
"""Dtypes whose flags are an item size at present, and the addresses of the flags."""


def prepare() -> None:
    """Apply the fixes to the stub of this process; further calls do nothing.

    Raises:
        RuntimeError: this numpy has another memory layout.
    """
    if _kept or np.lib.NumpyVersion(np.__version__) < "2.0.0":
        return
    byte = _byte_dtype()
    size = ctypes.c_int64.from_address(id(byte) + _ITEM_SIZE_OFFSET).value
    if (_item_size_in_stub(byte).value, size) != (byte.flags, byte.itemsize):
        raise RuntimeError(f"numpy {np.__version__} lays out its dtypes in another way than numpy 2.0")
    _fix_strides()
    pb_utils.serialize_byte_tensor = _serialize
    expected = np.arange(7, dtype=np.uint8)
    if not np.array_equal(from_array("check", expected).as_numpy(), expected):
        raise RuntimeError(f"Triton's stub can't take strings under numpy {np.__version__}")


def from_array(name: str, array: Array) -> Any:
    """Return a tensor of numbers for the stub."""
    capsule = np.ascontiguousarray(array).reshape(array.shape).__dlpack__()
    # The stub marks a capsule as used by a name that numpy does not know, so numpy would print a
    # traceback for every answer; the stub frees the memory itself.
    ctypes.pythonapi.PyCapsule_SetDestructor(ctypes.py_object(capsule), None)
    return pb_utils.Tensor.from_dlpack(name, capsule)


def from_strings(name: str, array: Array) -> Any:
    """Return a BYTES tensor for the stub from an array of str or bytes objects."""
    encoded = [text if isinstance(text, bytes) else str(text).encode() for text in array.ravel()]
    objects = np.empty(len(encoded), dtype=object)
    objects[:] = encoded
    try:
        return pb_utils.Tensor(name, objects.reshape(array.shape))
    finally:
        while _measured:
            _byte, item_size = _measured.pop()
            item_size.value = 0


def to_strings(tensor: Any) -> Array:
    """Return the strings of a BYTES tensor as an array of str, for onnxruntime.

    Raises:
        ValueError: a string is not UTF-8.
    """
    array = tensor.as_numpy()
    texts = np.empty(array.size, dtype=object)
    texts[:] = [text.decode() for text in array.ravel()]
    return texts.reshape(array.shape)


def _serialize(array: Array) -> Array:
    """Return strings in Triton's format; it replaces Triton's function, which the stub calls by name."""
    byte = _byte_dtype()
    packed = np.frombuffer(b"".join(struct.pack("<I", len(t)) + t for t in array.ravel()), dtype=byte)
    item_size = _item_size_in_stub(byte)
    _measured.append((byte, item_size))
    item_size.value = 1  # to numpy this is an array of objects now, until the stub has measured it
    return packed


def _byte_dtype() -> np.dtype[Any]:
    """Return a separate dtype object for bytes, so that no other array changes; the metadata makes it separate."""
    return np.dtype("u1", metadata={"of": "strings"})


def _item_size_in_stub(dtype: np.dtype[Any]) -> ctypes.c_int32:
    return ctypes.c_int32.from_address(id(dtype) + _FLAGS_OFFSET)


def _fix_strides() -> None:
    import numpy.core.multiarray as numpy_1_name  # the name that a stub built for numpy 1 imports

    open_capsule = ctypes.pythonapi.PyCapsule_GetPointer
    open_capsule.restype, open_capsule.argtypes = _pointer, [ctypes.py_object, ctypes.c_char_p]
    make_capsule = ctypes.pythonapi.PyCapsule_New
    make_capsule.restype, make_capsule.argtypes = ctypes.py_object, [_pointer, ctypes.c_char_p, _pointer]

    capsule = getattr(numpy_1_name, _TABLE)
    entries = _pointer * _TABLE_LENGTH
    table = entries.from_buffer_copy(entries.from_address(open_capsule(capsule, None)))
    make_array = _NewFromDescr(table[_NEW_FROM_DESCR] or 0)

    def without_strides(*arguments: Any) -> Any:
        kind, dtype, ndim, dims, _strides, data, flags, owner = arguments
        return make_array(kind, dtype, ndim, dims, None, data, flags, owner)

    replaced = _NewFromDescr(without_strides)
    table[_NEW_FROM_DESCR] = ctypes.cast(replaced, _pointer).value
    _kept.extend((table, make_array, replaced))
    setattr(numpy_1_name, _TABLE, make_capsule(ctypes.addressof(table), None, None))
    try:
        from_array("first", np.zeros(1, np.uint8))  # the stub's first array: it reads the table now
    finally:
        setattr(numpy_1_name, _TABLE, capsule)
