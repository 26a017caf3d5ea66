"""Where a fold's training stands: all that a resume point holds beside weights and the optimizer's tensors."""

from collections.abc import Iterator, Sequence
from dataclasses import field
from typing import Any, Self

from pydantic import ConfigDict, Field, NonNegativeInt, model_validator
from pydantic.dataclasses import dataclass

from creature.errors import UserError
from creature.metrics.accuracy import Count
from creature.recipe import Images, Recipe

MAX_SKIPPED_IN_A_ROW = 10
LOWER_RATE = "try a lower optimizer.lr, or optimizer.clip_norm=1"

_ROW = "{:>7}  {:>8}  {:>8}  {:>8}  {:>7}  {}"
TABLE_HEADER = _ROW.format("epoch", "loss", "rate", "seconds", "waiting", "held-out accuracy [95 %]")

_EXACT = ConfigDict(strict=True, extra="forbid")  # a resume point of another version is refused by name


@dataclass(config=_EXACT, kw_only=True)
class EpochResult:
    """An epoch's figures: a line of history.jsonl."""

    epoch: NonNegativeInt  # from 1
    loss: float  # mean over the rows of all steps that were taken
    learning_rate: float  # of the last step
    seconds: float
    waiting: float = 0.0  # share of the seconds that steps waited for images; unknown to older runs
    skipped_steps: NonNegativeInt = 0  # unknown to the oldest runs
    images_per_second: float
    accuracy: float  # of held-out rows, as are all below
    correct: NonNegativeInt
    n: NonNegativeInt
    low: float  # of the 95 % interval
    high: float
    selected_by: float | None = None  # the score by which the best epoch is chosen, where that is not the accuracy

    @property
    def score(self) -> Count:
        """Held-out rows that are right."""
        return Count(self.correct, self.n)

    @property
    def rank(self) -> float:
        """What the best epoch has most of."""
        return self.correct if self.selected_by is None else self.selected_by

    def __str__(self) -> str:
        figures = f"{self.loss:.4f}", f"{self.learning_rate:.1e}", f"{self.seconds:.1f}", f"{self.waiting:.0%}"
        return _ROW.format(self.epoch, *figures, self.score)

    def tracked(self, fold: int) -> dict[str, float]:
        """What trackers show, by name."""
        figures = {
            "train_loss": self.loss,
            "learning_rate": self.learning_rate,
            "epoch_seconds": self.seconds,
            "waiting": self.waiting,
            "images_per_second": self.images_per_second,
            "skipped_steps": self.skipped_steps,
            "held_out_accuracy": self.accuracy,
            "held_out_accuracy_low": self.low,
            "held_out_accuracy_high": self.high,
        }
        return {f"fold-{fold}/{name}": value for name, value in figures.items()}


def remarks(state: "TrainingState", recipe: Recipe, epochs: int) -> Iterator[str]:
    """What there is to say of the epoch that has ended, of so many `epochs`: how to wait less, and the time in all."""
    if advice := advice_on_waiting(state.history, recipe.images):
        yield advice
    if state.epoch == 2 and epochs > recipe.schedule.epochs:
        spent = sum(result.seconds for result in state.history) + state.saving_seconds
        minutes = spent / 60 / state.epoch * epochs
        yield f"schedule.min_steps: {epochs} epochs like these take about {minutes:.1f} minutes"


def advice_on_waiting(history: Sequence[EpochResult], images: Images) -> str:
    """How to wait less for images, where the last epoch is the first that lost a tenth and a second to it; or nothing.

    The first epoch of all does not count, for workers start in it; nor does what the main process itself prepares,
    without workers.
    """
    waited = [result for result in history[1:] if result.waiting > 0.1 and result.waiting * result.seconds > 1]
    if len(waited) != 1 or waited[0] is not history[-1] or images.cache == "device" or images.workers == 0:
        return ""
    way_out = "images.cache=disk or more images.workers" if images.cache == "off" else "more images.workers"
    return f"{waited[0].waiting:.0%} of the epoch waited for images; {way_out} shorten it"


@dataclass(config=_EXACT)
class TrainingState:
    """The next batch, the loss so far in this epoch, and the epochs behind it."""

    epoch: NonNegativeInt = 0
    batch: NonNegativeInt = 0
    loss_sum: float = 0.0
    rows: NonNegativeInt = 0  # in loss_sum
    skipped: NonNegativeInt = 0  # steps of this epoch that were not finite
    in_a_row: NonNegativeInt = 0  # skipped steps since the last one that was taken
    seconds: float = 0.0  # of this epoch
    waited: float = 0.0  # of these, for images
    saving_seconds: float = 0.0  # for which the fold has waited for checkpoints
    best_epoch: int = Field(default=-1, ge=-1)
    start: Count | None = None  # held-out rows that a linear probe had right before the first step
    history: list[EpochResult] = field(default_factory=list)
    micro_batches: int = Field(default=1, ge=1)  # in which a step fits into the memory
    threads: NonNegativeInt = 0  # with which the steps were computed
    scaler: dict[str, Any] | None = None  # state of the gradient scaler, with fp16

    @model_validator(mode="after")
    def _epochs_fit_history(self) -> Self:
        if self.epoch != len(self.history):
            raise ValueError("its history is not one row an epoch")
        if self.best_epoch >= self.epoch:
            raise ValueError("its best epoch is still to come")
        return self

    def end_step(self, loss: float, taken: bool, size: int, *, ids: Sequence[str]) -> None:
        """Count a step on a global batch of `size` rows; `ids` are this process's images in it.

        Raises UserError at the tenth skipped step in a row.
        """
        self.batch += 1
        if taken:
            self.loss_sum, self.rows, self.in_a_row = self.loss_sum + loss * size, self.rows + size, 0
            return
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        if self.in_a_row == MAX_SKIPPED_IN_A_ROW:  # guard: ten-skipped
            raise UserError(
                f"epoch {self.epoch + 1}: {MAX_SKIPPED_IN_A_ROW} steps in a row were skipped, for their loss or "
                f"gradient was no finite number, the last on {', '.join(ids[:5])}; {LOWER_RATE}"
            )

    def end_epoch(
        self, score: Count, selected_by: float | None = None, *, learning_rate: float, images: int
    ) -> EpochResult:
        """The figures of the epoch that ends, on so many `images`; the state moves to the beginning of the next one.

        Raises UserError where every step was skipped.
        """
        if not self.rows:
            raise UserError(f"epoch {self.epoch + 1}: every step was skipped, for none had a finite loss; {LOWER_RATE}")
        result = EpochResult(
            epoch=self.epoch + 1,
            loss=self.loss_sum / self.rows,
            learning_rate=learning_rate,
            seconds=round(self.seconds, 3),
            waiting=round(self.waited / self.seconds, 4),
            skipped_steps=self.skipped,
            images_per_second=round(images / self.seconds, 1),
            selected_by=selected_by,
            **score.figures(),  # pyright: ignore[reportArgumentType]
        )
        self.history.append(result)
        if self.best_epoch < 0 or result.rank > self.history[self.best_epoch].rank:
            self.best_epoch = self.epoch
        self.epoch, self.batch, self.loss_sum, self.rows, self.skipped = self.epoch + 1, 0, 0.0, 0, 0
        self.seconds = self.waited = 0.0
        return result
