"""A page in the browser: drop a photo, see the five best answers, and how the members of an ensemble agree.

creature demo runs/all --members
creature demo hf-hub:USER/NAME
"""

import argparse
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from creature.console import printable, say
from creature.errors import UserError

if TYPE_CHECKING:
    from creature.inference.predictor import Predictor

SHOWN = 5


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="creature demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
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
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise UserError(f"the page needs {error.name}, which is not installed: pip install 'creature[demo]'") from error
    from creature.inference.load import load_predictor

    predictor = load_predictor(args.model, args.members, args.device)
    page = build(predictor)
    try:
        _, url, _ = page.launch(
            server_name="127.0.0.1", server_port=args.port, prevent_thread_lock=True, quiet=True, footer_links=[]
        )
    except OSError as error:
        raise UserError(f"--port: {args.port} cannot be used here: {error}; try --port {args.port + 1}") from error
    say(f"{predictor.title}: open {url} in a browser; Ctrl-C ends it")
    page.block_thread()
    return 0


def build(predictor: "Predictor") -> Any:
    """The page of a predictor: a gradio.Blocks."""
    import gradio as gr

    several = len(predictor.members) > 1
    with gr.Blocks(title="creature", analytics_enabled=False) as page:
        gr.Markdown(f"# {_text(predictor.title)}\nDrop a photo of one of {_text(_listed(predictor.class_names))}.")
        with gr.Row():
            # filepath without a mode: the file as it was dropped, for the one decoder.
            photo = gr.Image(
                label="Photo", type="filepath", image_mode=None, sources=["upload", "clipboard"], height=400
            )
            with gr.Column():
                label = gr.Label(label="Answer", num_top_classes=SHOWN)
                note = gr.Markdown()
                table = gr.Dataframe(
                    headers=["member", "answer", "probability"],
                    label="Members",
                    interactive=False,
                    visible=several,
                    wrap=True,
                )
        photo.change(answerer(predictor), photo, [label, note, table], api_name="predict")
    return page


def answerer(predictor: "Predictor") -> Callable[[str | None], tuple[dict[str, float] | None, str, list[list[str]]]]:
    """What the page does with a photo: probabilities by label, a sentence, and a row for each member."""
    from creature.inference.inputs import InputPath, read_inputs
    from creature.inference.predictor import predict_batches
    from creature.metrics.blend import blend

    def answer(path: str | None) -> tuple[dict[str, float] | None, str, list[list[str]]]:
        if path is None:
            return None, "", []
        (said,) = predict_batches(predictor, read_inputs([InputPath("photo", path)]), 1, "predicting")
        if said.broken:
            return None, f"This photo cannot be read: {_text(said.broken[0])}.", []
        (together,) = blend(said.logits, predictor.strategy, predictor.weights)
        alone = [blend(logits[None])[0] for logits in said.logits]
        rows = [
            [member, predictor.class_names[each.argmax()], f"{each.max():.3f}"]
            for member, each in zip(predictor.members, alone, strict=True)
        ]
        best = predictor.class_names[together.argmax()]
        same = sum(predictor.class_names[each.argmax()] == best for each in alone)
        note = f"{same} of {len(alone)} members say **{_text(best)}**." if len(alone) > 1 else ""
        return dict(zip(predictor.class_names, map(float, together), strict=True)), note, rows

    return answer


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 12 else f"{len(names)} classes, such as {', '.join(names[:8])}"


def _text(name: str) -> str:
    """Nothing in a name is markup."""
    from creature.reporting.tables import escape_markdown

    return escape_markdown(printable(name))
