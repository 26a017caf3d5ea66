"""Two processes against one, and against torch's DistributedDataParallel alone; gloo, on batches that are ready.

python benchmarks/processes.py [ROUNDS]

resnet18 at 128 px, 32 rows a process and step, one thread each. The one process is a bare loop, which is no slower
than ours (benchmarks/step.py), and the other waits meanwhile. Efficiency is the work of two in the time of one, so the
time of two over one is at most 1 / 0.90; against torch's alone it is at most 1 / 0.97. Same weights, bit for bit.
Two that exchange nothing show what the machine has to give: where they take longer than one, its cores are not free.
"""

import argparse
import os
import socket
from collections.abc import Callable

from sides import in_turns, judge
from step import bare_loop, difference, make_recipe, our_loop, ready_batches
from torch import distributed
from torch.multiprocessing import spawn
from torch.nn.parallel import DistributedDataParallel

from creature.console import say

NAME, SIZE, ROWS, STEPS = "resnet18", 128, 32, 2


def together(work: Callable[[], None]) -> Callable[[], None]:
    """Time ends when both processes are done."""

    def timed() -> None:
        work()
        distributed.barrier()

    return timed


def process(rank: int, port: int, rounds: int) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    recipe, batches = make_recipe(NAME, SIZE, 2 * ROWS), ready_batches(SIZE, ROWS, STEPS, seed=rank)
    our_model, ours = our_loop(recipe, batches)
    raw_model, raw = bare_loop(recipe, batches, DistributedDataParallel)
    _, alone = bare_loop(recipe, batches)
    ours(), raw()
    far = difference(our_model, raw_model) if rank == 0 else 0.0
    one = alone if rank == 0 else lambda: None
    sides = {"ours": ours, "torch's alone": raw, "one process": one, "two that exchange nothing": alone}
    seconds = in_turns({name: together(work) for name, work in sides.items()}, rounds)
    if rank == 0:
        title = f"two processes, {STEPS} steps of {NAME} at {SIZE} px, {ROWS} rows each"
        judge("P9", title, "ours", seconds, {"torch's alone": 1 / 0.97, "one process": 1 / 0.90}, weights_differ_by=far)
        say(f"after {STEPS} steps weights differ by {far:.1e} at most")
    distributed.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rounds", type=int, nargs="?", default=15, metavar="ROUNDS", help="(%(default)s)")
    rounds = parser.parse_args().rounds
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    spawn(process, (port, rounds), nprocs=2)


if __name__ == "__main__":
    main()
