"""Memory that a process and its workers map: batches lie in it, and none is copied or allocated on the way."""

import os
from typing import Any

import numpy as np
import torch


class SharedBuffers:
    """`count` buffers of `size` bytes, which processes that get this object map, too.

    On Linux they are an anonymous file, not one in /dev/shm, which containers limit to 64 MB. With `pinned`, a GPU
    reads from them directly.
    """

    def __init__(self, count: int, size: int, pinned: bool = False):
        self.count, self.size, self.pinned = count, size, pinned
        if hasattr(os, "memfd_create"):
            self.handle = os.memfd_create("creature")
            os.truncate(self.handle, count * size)
            self._map(f"/proc/{os.getpid()}/fd/{self.handle}")
        else:
            self.memory = torch.zeros(count, size, dtype=torch.uint8).share_memory_()
        if pinned:
            torch.cuda.cudart().cudaHostRegister(self.memory.data_ptr(), count * size, 0)  # type: ignore[union-attr]

    def __getitem__(self, number: int) -> torch.Tensor:
        return self.memory[number]

    def __getstate__(self) -> dict[str, Any]:
        shared = {"path": self.path} if hasattr(self, "path") else {"memory": self.memory}
        return shared | {"count": self.count, "size": self.size}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.count, self.size, self.pinned = state["count"], state["size"], False
        if "path" in state:
            self._map(state["path"])
        else:
            self.memory = state["memory"]

    def _map(self, path: str) -> None:
        self.path = path
        self.memory = torch.from_numpy(np.memmap(path, np.uint8, "r+", shape=(self.count, self.size)))

    def close(self) -> None:
        """Give the memory back; nothing may look into it afterwards."""
        if self.pinned:
            torch.cuda.cudart().cudaHostUnregister(self.memory.data_ptr())  # type: ignore[union-attr]
        del self.memory
        if hasattr(self, "handle"):
            os.close(self.handle)
