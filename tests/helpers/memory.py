"""How much memory a value holds."""

import gc
import tracemalloc
from collections.abc import Callable
from typing import TypeVar

import pyarrow as pa

T = TypeVar("T")


def holding(make: Callable[[], T]) -> tuple[T, int]:
    """What is made, and the bytes that Python, NumPy and Arrow hold for it when it is made a second time."""
    make()
    gc.collect()
    tracemalloc.start()
    arrow = pa.total_allocated_bytes()
    try:
        made = make()
        gc.collect()
        return made, tracemalloc.get_traced_memory()[0] + pa.total_allocated_bytes() - arrow
    finally:
        tracemalloc.stop()
