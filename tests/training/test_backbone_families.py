"""Whatever timm can build is trained, resumed, loaded by timm and published: a small model of each of its families."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import is_model_in_modules

from creature.errors import UserError
from creature.inference.members import load_member
from creature.publishing import publish
from creature.recipe import Backbone
from creature.samples import write_drawings
from creature.training.backbone import build_backbone
from helpers import faults
from helpers.runs import TINY, start, weights_hash

FAMILIES = """
    lambda_resnet26t test_byobnet cait_xxs24_224 coat_tiny coat_lite_tiny convit_tiny convmixer_768_32 test_convnext
    cpubone_nano crossvit_tiny_240 csatv2 cs3darknet_focus_s cspnext_tiny davit_tiny deit_tiny_patch16_224
    deit_tiny_distilled_patch16_224 densenet121 dla46x_c dpn48b edgenext_xx_small efficientformer_l1
    efficientformerv2_s0 test_efficientnet efficientvim_m1 efficientvim_m1_dist efficientvit_b0 efficientvit_m0
    vit_tiny_patch16_dinov3_qkvb fasternet_t0 fastvit_t8 focalnet_tiny_srf gcvit_xxtiny ghostnet_050 hardcorenas_b
    hgnetv2_b0 hiera_tiny_224 sam2_hiera_tiny hrnet_w18_small iformer_t inception_next_atto inception_resnet_v2
    inception_v3 inception_v4 lcnetv2_small levit_128s lowformer_b0 test_mambaout test_coatnet poolformerv2_s12
    caformer_s18 gmlp_ti16_224 lcnet_035 mobilevit_xxs mvitv2_tiny nest_tiny nextvit_small test_nfnet pit_ti_224
    pit_ti_distilled_224 pvt_v2_b0 rdnet_tiny regnetx_002 repghostnet_050 repvit_m1 res2next50 resnest14d test_resnet
    resnetv2_18 rexnet_100 selecsls42 legacy_seresnet18 sequencer2d_s shvit_s1 skresnet18 starnet_s050 swiftformer_xs
    swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 swinv2_cr_tiny_224 tiny_vit_5m_224 tnt_s_legacy_patch16_224
    tresnet_m twins_svt_small visformer_tiny test_vit vit_tiny_r_s16_p8_224 test_vit_relpos vitamin_small_224
    volo_d1_224 ese_vovnet19b_slim_dw legacy_xception xception41p xcit_nano_12_p8_224
""".split()  # noqa: SIM905
# Their smallest models have 80 to 400 million parameters.
LARGE = {"beit", "deepseek_vit", "gemma4_vit", "mobilenetv5", "naflexvit", "nasnet", "pnasnet", "qwen3_vit", "vgg"}
LARGE |= {"vision_transformer_sam"}
SIZES = (32, 64, 160, 224, 240, 256, 299)


def smallest_size(name: str) -> int:
    for size in SIZES:
        with suppress(UserError):
            build_backbone(Backbone(name=name, pretrained=False), 12, size)
            return size
    pytest.fail(f"{name} takes none of {SIZES}")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """One epoch of two steps on twelve images, one of each class, in one fold."""
    folder = tmp_path_factory.mktemp("families")
    write_drawings(folder, train=24, test=12, size=32)
    images = {**TINY["images"], "train": [str(folder / "train")]}
    folds, schedule = {"count": 2, "train": [0]}, {"epochs": 1}
    path = folder / "recipe.yaml"
    path.write_text(json.dumps({**TINY, "images": images, "folds": folds, "schedule": schedule, "batch_size": 6}))
    return path


@pytest.mark.full
def test_every_family_of_timm_has_a_model_here():
    missing = {module for module in timm.list_modules() if not any(is_model_in_modules(n, [module]) for n in FAMILIES)}
    assert missing == LARGE


@pytest.mark.full
@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_of_each_family_is_trained_resumed_loaded_and_published(recipe, tmp_path, name):
    size, run = smallest_size(name), tmp_path / "run"
    settings = (f"backbone.name={name}", f"images.size={size}")
    faults.start_until_step(1, recipe, run, *settings)
    assert start(recipe, run, *settings, resume=True) == 0
    member, weights = load_member(run / "fold-0", torch.device("cpu")), run / "fold-0/model.safetensors"
    options: dict[str, Any] = {"img_size": size} if member.model.pretrained_cfg["fixed_input_size"] else {}  # type: ignore[index]
    loaded = timm.create_model(name, num_classes=12, checkpoint_path=str(weights), **options).eval()
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(loaded(image), member.model(image), atol=1e-4, rtol=1e-4)
    assert publish.main([str(run), "me/model", "--dry-run", "--license", "mit", "--data", "drawn"]) == 0
    check_frozen(recipe, tmp_path / "frozen", weights, *settings)


def check_frozen(recipe: Path, run: Path, weights: Path, *settings: str) -> None:
    """Training the classifier alone, or starting at its solution, gives another model or a sentence."""
    for setting in ("backbone.frozen=true", "backbone.head_start=probe"):
        try:
            out = run / setting
            assert start(recipe, out, *settings, setting, "augment={}", f"backbone.weights={weights}") == 0
            assert weights_hash(out / "fold-0") != weights_hash(weights.parent)
        except UserError as refused:
            assert setting.partition("=")[0] in str(refused) and "set it to" in str(refused)
