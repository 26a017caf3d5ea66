"""Where a run's batches come from: a pool of workers, or the device's memory."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch

from creature.data.device_images import DeviceImages
from creature.data.fork_server import fork_server
from creature.data.loader import MakeBatches, RunImages, start_loader
from creature.device import choose_workers
from creature.recipe import Images


@contextmanager
def open_batches(settings: Images, device: torch.device) -> Iterator[Callable[[RunImages, int], MakeBatches]]:
    """A function of the run's images, and the bytes of its largest batch, that gives their batches within the block.

    What starts its workers gets ready until then, while images are checked.
    """
    on_device = settings.cache == "device"
    workers = 0 if on_device else choose_workers(settings.workers, device)
    with ExitStack() as context:
        if workers:
            context.enter_context(fork_server("creature.data.loader", "creature.data.sources"))

        def start(images: RunImages, buffer_bytes: int) -> MakeBatches:
            if on_device:
                return DeviceImages(images, device).batches
            return context.enter_context(start_loader(images, workers, buffer_bytes, device=device))

        yield start
