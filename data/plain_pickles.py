"""Pickles that others have written, of which only arrays in plain containers are loaded."""

from __future__ import annotations

import pickle
from collections.abc import Collection
from typing import Any, BinaryIO


class ArraysOnly(pickle.Unpickler):
    """Loads numpy arrays in plain containers: a pickle may otherwise run any program.

    Args:
        file: to load from.
        also: module and name of classes that are harmless, too.
    """

    _ALLOWED = {
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),  # how protocols 0 to 2 write bytes
        *(
            (f"numpy.{core}.{module}", name)
            for core in ("core", "_core")  # numpy 1 and 2
            for module, name in (("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer"))
        ),
    }

    def __init__(self, file: BinaryIO, also: Collection[tuple[str, str]] = ()) -> None:
        super().__init__(file)
        self._also = frozenset(also)

    def find_class(self, module: str, name: str) -> Any:
        """Refuse every name that is not known to be harmless.

        Raises:
            pickle.UnpicklingError: naming it.
        """
        if (module, name) not in self._ALLOWED | self._also:
            raise pickle.UnpicklingError(f"it must hold numpy arrays in plain containers alone, got {module}.{name}")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)
