"""A page in the browser: drop an image, see its five most probable labels, and how an ensemble's members agree.

creature demo runs/all --members
creature demo hf-hub:USER/NAME
"""

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from creature.console import say
from creature.errors import UserError, check_installed, first_line

if TYPE_CHECKING:
    import gradio

    from creature.inference.classifier import Classifier

SHOWN = 5  # labels

Shown = tuple[dict[str, float] | None, str, list[list[str]]]  # probability by label, a sentence, a row a member


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="creature demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="what creature predict takes: a fold or run, hf-hub:USER/NAME, or FILE.onnx")
    parser.add_argument("--members", action="store_true", help="ask every member of the run or repository")
    parser.add_argument("--device", default="auto", help="cuda, mps or cpu; auto takes the first that is there")
    parser.add_argument("--port", type=int, default=7860, help="of the page, on this computer alone (%(default)s)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve the page until it is interrupted."""
    args = parse(argv)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    with without_proxies():
        check_installed("demo", "the page", "gradio")
    from creature.inference.classifier import load

    classifier = load(args.model, device=args.device, members=args.members)
    try:
        with without_proxies():
            page = build(classifier)
            _, url, _ = page.launch(
                server_name="127.0.0.1", server_port=args.port, prevent_thread_lock=True, quiet=True, footer_links=[]
            )
    except OSError as error:
        raise UserError(
            f"--port: {args.port} cannot be used here: {first_line(error)}; try --port {args.port + 1}"
        ) from error
    say(f"{classifier.predictor.title}: open {url} in a browser; Ctrl-C ends it")
    page.block_thread()
    return 0


@contextmanager
def without_proxies() -> Iterator[None]:
    """Within the block the environment names no proxy: gradio asks its own page whether it is there."""
    proxies = {name: os.environ.pop(name) for name in list(os.environ) if name.lower().endswith("_proxy")}
    try:
        yield
    finally:
        os.environ.update(proxies)


def build(classifier: "Classifier") -> "gradio.Blocks":
    """The page of a classifier."""
    import gradio as gr

    from creature.reporting.tables import escape_markdown

    title, names = escape_markdown(classifier.predictor.title), escape_markdown(_listed(classifier.class_names))
    with gr.Blocks(title="creature", analytics_enabled=False) as page:
        gr.Markdown(f"# {title}\nDrop an image of one of {names}.")
        with gr.Row():
            # filepath without a mode: the file as it was dropped, so that it is decoded as predict.py does.
            image = gr.Image(
                label="Image", type="filepath", image_mode=None, sources=["upload", "clipboard"], height=400
            )
            with gr.Column():
                label = gr.Label(label=f"Prediction, {classifier.predictor.calibrated}", num_top_classes=SHOWN)
                note = gr.Markdown()
                table = gr.Dataframe(
                    headers=["member", "label", "probability, not calibrated"],
                    label="Members",
                    interactive=False,
                    visible=len(classifier.members) > 1,
                    wrap=True,
                )
        image.change(handler(classifier), image, [label, note, table], api_name="predict")
    return page


def handler(classifier: "Classifier") -> Callable[[str | None], Shown]:
    """What the page does with the path of a dropped image."""
    from creature.metrics.blend import blend
    from creature.reporting.tables import escape_markdown

    names, predictor = classifier.class_names, classifier.predictor

    def show(path: str | None) -> Shown:
        if path is None:
            return None, "", []
        (batch,) = classifier.batches(path, batch_size=1)
        if batch.broken:
            return None, f"This image cannot be read: {escape_markdown(batch.broken[0])}.", []
        (together,) = predictor.probabilities(batch.logits)
        alone = [blend(logits[None])[0] for logits in batch.logits]
        rows = [
            [member, names[probabilities.argmax()], f"{probabilities.max():.3f}"]
            for member, probabilities in zip(classifier.members, alone, strict=True)
        ]
        best = names[together.argmax()]
        same = sum(names[probabilities.argmax()] == best for probabilities in alone)
        note = f"{same} of {len(alone)} members say **{escape_markdown(best)}**." if len(alone) > 1 else ""
        return dict(zip(names, map(float, together), strict=True)), note, rows

    return show


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 12 else f"{len(names)} classes, such as {', '.join(names[:8])}"
