"""The loop's inner functions: an epoch's steps, and predictions of rows. B batch, N rows, K classes.

A test that injects a fault replaces `loop.train_step` or `loop.predict`, which are looked up at each call, by a
function of the same signature: what follows the `*` is always given by name.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from creature.console import progress, warn
from creature.data.loader import Batch, MakeBatches
from creature.data.order import fold_requests, held_out_order
from creature.device import copy_to
from creature.errors import Interrupted, UserError
from creature.metrics.predictions import Predictions
from creature.metrics.scores import score_by
from creature.run import held_out_predictions
from creature.training import distributed
from creature.training.learner import Learner
from creature.training.partial import frozen_batch_norms
from creature.training.saver import Saver
from creature.training.signals import Stop
from creature.training.step import StepResult, check_readable, train_step
from creature.training.train_data import TrainData


@contextmanager
def restoring_random_state(device: torch.device) -> Iterator[None]:
    """Give torch's generators, which learners and steps seed, their state back after the block."""
    with torch.random.fork_rng([device.index or 0] if device.type == "cuda" else []):
        yield


def fold_batches(
    accelerator: Accelerator, learner: Learner, data: TrainData, *, make_batches: MakeBatches
) -> Iterator[Batch]:
    """This process's share of a fold's batches, from where it stands on: an epoch's steps, then its held-out rows."""
    held_out = data.folds.held_out(learner.fold)
    requests = fold_requests(
        np.flatnonzero(~held_out).astype(np.int32),  # of which there may be millions
        np.flatnonzero(held_out).astype(np.int32),
        data.batch_size,
        seed=(learner.seed, learner.fold),
        epochs=learner.epochs,
        start=(learner.state.epoch, learner.state.batch),  # guard: start-in-epoch
        share=distributed.share_of(accelerator),
    )
    return make_batches(requests)


def train_epoch(
    accelerator: Accelerator,
    learner: Learner,
    batches: Iterator[Batch],
    *,
    stop: Stop,
    saver: Saver,
    title: str,
) -> None:
    """The steps of an epoch that are left; saves every few minutes, and before it raises Interrupted if asked to."""
    state, sizes = learner.state, learner.batch_sizes
    began, saved = time.monotonic() - state.seconds, time.monotonic()
    alone = accelerator.num_processes == 1
    unread: list[tuple[torch.Tensor, list[str]]] = []
    train_mode(learner.model, learner.freeze_batch_stats)
    stop.at_once = False
    accelerator.wait_for_everyone()  # the main process may still be copying what it saves
    with progress() as bar:
        task = bar.add_task(title, total=sum(sizes), speed="")
        for number in range(state.batch, len(sizes)):
            asked = time.monotonic()
            batch = next(batches)
            state.waited += time.monotonic() - asked
            # guard: save-when-due
            due = accelerator.is_main_process and time.monotonic() - saved >= 60 * learner.save_minutes
            with distributed.wait_limit(accelerator, distributed.WAIT_IN_STEP, after=distributed.WAIT_IN_FOLD):
                result = train_step(accelerator, learner, batch, number=number, stop=stop.asked, save=due)
                if learner.ema:
                    learner.ema.update(learner.model, state.epoch * len(sizes) + number + 1)
                unread.append((result, batch.ids))
                # Several processes read after the same step, or they would not stop after the same one.
                last = number + 1 == len(sizes)
                if len(unread) < steps_per_read(accelerator.device) and not last and not (alone and stop.asked):
                    continue
                results = read_steps(learner, unread)
            state.seconds = time.monotonic() - began
            bar.update(task, completed=sum(sizes[: state.batch]), speed=f"{bar.tasks[task].speed or 0:.0f}")
            saver.check()
            stops = any(result.stop for result in results)
            if stops or any(result.save for result in results):
                saver.save_now() if stops else saver.save()
                accelerator.wait_for_everyone()  # a launcher ends all processes when the first leaves
                saved = time.monotonic()
            if stops:
                where = f"step {state.batch} of epoch {state.epoch + 1} of fold {learner.fold}"
                raise Interrupted(f"stopped as asked after {where}, and saved; --resume goes on")


def train_mode(model: nn.Module, freeze_batch_stats: bool) -> None:
    """Training mode, with BatchNorm on its pretrained statistics if asked, or where nothing of it learns."""
    model.train()
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    for module in norms if freeze_batch_stats else frozen_batch_norms(model):
        module.eval()


def steps_per_read(device: torch.device) -> int:
    """After how many steps their results are read: a GPU would wait for its host each time."""
    return 1 if device.type == "cpu" else 10


def read_steps(learner: Learner, unread: list[tuple[torch.Tensor, list[str]]]) -> list[StepResult]:
    """Move steps, each with its images' ids, into the learner's state; `unread` is empty then."""
    state = learner.state
    results = StepResult.unpack([packed for packed, _ in unread])
    for result, (_, ids) in zip(results, unread, strict=True):
        if not result.taken:
            warn(f"step {state.batch + 1} of epoch {state.epoch + 1} is skipped: its loss is {result.loss}")
        state.end_step(result.loss, result.taken, size=learner.batch_sizes[state.batch], ids=ids)
    unread.clear()
    return results


def predict_held_out(
    accelerator: Accelerator, learner: Learner, data: TrainData, *, batches: Iterator[Batch]
) -> Predictions:
    """The predictions of a fold's held-out rows, whose batches are the next ones."""
    rows, model = np.flatnonzero(data.folds.held_out(learner.fold)).astype(np.int32), learner.eval_model
    logits = predict(accelerator, model, batches, rows=rows, batch_size=data.batch_size, normalize=learner.normalize)
    return held_out_predictions(data.folds, rows, logits)


def selected_by(predictions: Predictions, metric: str) -> float | None:
    """The score by which the best epoch is chosen, where `metric` (checkpoint.metric) is not the accuracy."""
    if metric == "accuracy":
        return None
    return score_by(metric, predictions.predicted, predictions.labels, classes=len(predictions.class_names))


@torch.inference_mode()
def predict(
    accelerator: Accelerator,
    model: nn.Module,
    batches: Iterator[Batch],
    *,
    rows: np.ndarray,
    batch_size: int,
    normalize: nn.Module,
    title: str = "held-out rows",
) -> np.ndarray:
    """Logits (N, K) of rows (N,), in their order, on every process; one process predicts each row.

    The next `batches` are those of held_out_requests.

    Raises UserError where a logit is not finite, BrokenError for an image that cannot be read any more.
    """
    model = accelerator.unwrap_model(model).eval()
    if accelerator.num_processes > 1:
        broadcast(list(model.buffers()))  # BatchNorm's statistics are the main process's, as in the checkpoint
    chunks = held_out_order(rows, batch_size, distributed.share_of(accelerator))
    predicted: list[tuple[np.ndarray, np.ndarray]] = []  # places in `rows`, and their logits
    with progress() as bar:
        task = bar.add_task(title, total=sum(map(len, chunks)), speed="")
        for chunk in chunks:
            batch = next(batches)
            check_readable(batch)
            assert np.array_equal(batch.rows, rows[chunk]), "batches of other rows"
            pixels = normalize(copy_to(accelerator.device, batch.pixels))
            # Not the compiled call, but what predict.py computes; and a last batch may be of any size.
            predicted.append((chunk, model.forward(pixels).float().cpu().numpy()))
            bar.update(task, advance=len(chunk), speed=f"{bar.tasks[task].speed or 0:.0f}")
    if accelerator.num_processes > 1:
        predicted = gather_object(predicted)
    logits = np.full((len(rows), predicted[0][1].shape[1]), np.nan, dtype=np.float32)
    times_predicted = np.zeros(len(rows), dtype=np.int64)
    for chunk, values in predicted:
        logits[chunk] = values
        times_predicted[chunk] += 1
    assert (times_predicted == 1).all(), "a row was predicted more than once, or not at all"
    if not np.isfinite(logits).all():
        raise UserError("the model's logits are no finite numbers; try a lower optimizer.lr, or optimizer.clip_norm=1")
    return logits
