"""The peer of accuracy.py: what timm's train.py does with these flags, out of timm's parts (its wheel has no script).

python benchmarks/timm_train.py DATA --weights FILE --lr 1e-3 --output DIR

Flags, defaults and the order of things are those of the script: random resized crops from 8 %, colour jitter, label
smoothing, five epochs of warm-up and a cosine that moves by the epoch, a validation and a checkpoint after each epoch.
AdamW with weight decay 0.01 is how timm's model cards fine-tune. It is a process of its own and imports none of ours.
"""

import argparse
from pathlib import Path

import torch
from timm import create_model, utils
from timm.data import create_dataset, create_loader, resolve_data_config
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2

MODEL = "tf_efficientnet_lite0"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DATA", help="folder with train/ and val/, each with a folder a class")
    parser.add_argument("--weights", required=True, help="safetensors of ImageNet, in timm's naming")
    parser.add_argument("--output", required=True, help="folder of the checkpoints")
    parser.add_argument("--lr", type=float, required=True)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--img-size", type=int, default=96)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=42)
    return parser.parse_args()


def train_one_epoch(model, loader, optimizer, loss_fn) -> float:
    losses = utils.AverageMeter()
    model.train()
    for step, (pixels, target) in enumerate(loader):
        loss = loss_fn(model(pixels), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.update(loss.item(), len(target))
        if step % 50 == 0 or step == len(loader) - 1:
            print(f"step {step}/{len(loader)} loss {losses.avg:.4f} rate {optimizer.param_groups[0]['lr']:.2e}")
    return losses.avg


@torch.inference_mode()
def validate(model, loader) -> float:
    """Top-1 accuracy in percent."""
    top1 = utils.AverageMeter()
    model.eval()
    for pixels, target in loader:
        (found,) = utils.accuracy(model(pixels), target)
        top1.update(found.item(), len(target))
    return top1.avg


def main() -> None:
    args = parse()
    utils.random_seed(args.seed)
    classes = sum(folder.is_dir() for folder in (Path(args.data) / "train").iterdir())
    weights = {"pretrained_cfg_overlay": {"file": args.weights}}
    model = create_model(MODEL, pretrained=True, num_classes=classes, **weights)
    seen = resolve_data_config({"img_size": args.img_size}, model=model)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=args.lr, weight_decay=0.01)
    shared = {
        "input_size": seen["input_size"],
        "batch_size": args.batch_size,
        "mean": seen["mean"],
        "std": seen["std"],
        "num_workers": args.workers,
        "device": torch.device("cpu"),
    }
    training = create_loader(
        create_dataset("", args.data, split="train", is_training=True, batch_size=args.batch_size),
        is_training=True,
        scale=(0.08, 1.0),
        ratio=(3 / 4, 4 / 3),
        interpolation="random",
        **shared,
    )
    validation = create_loader(
        create_dataset("", args.data, split="val", is_training=False, batch_size=args.batch_size),
        interpolation=seen["interpolation"],
        crop_pct=seen["crop_pct"],
        **shared,
    )
    schedule, epochs = create_scheduler_v2(
        optimizer, "cosine", args.epochs, warmup_epochs=5, warmup_lr=1e-5, updates_per_epoch=len(training)
    )
    Path(args.output).mkdir(parents=True)
    saver = utils.CheckpointSaver(model, optimizer, checkpoint_dir=args.output, recovery_dir=args.output)
    for epoch in range(epochs):
        loss = train_one_epoch(model, training, optimizer, LabelSmoothingCrossEntropy(smoothing=0.1))
        top1 = validate(model, validation)
        schedule.step(epoch + 1, top1)
        saver.save_checkpoint(epoch, metric=top1)
        print(f"epoch {epoch} loss {loss:.4f} validation {top1:.2f} %", flush=True)


if __name__ == "__main__":
    main()
