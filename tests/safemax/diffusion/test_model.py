from __future__ import annotations

import json

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, DiffusionPipeline, UNet2DModel
from safetensors.torch import load_file, save_file

from safemax.diffusion.model import Diffusion
from safemax.errors import InputError
from tests.support import tiny_models


def test_a_saved_model_loads_with_equal_weights_and_names(tmp_path):
    model = tiny_models.diffusion()
    model.save(tmp_path)
    loaded = Diffusion.load(tmp_path)
    assert loaded.digest() == model.digest()
    assert loaded.class_names == ("a", "b", "c")
    assert loaded.has_null
    assert {p.suffix for p in tmp_path.rglob("*") if p.is_file()} == {".json", ".safetensors"}


def test_the_digest_changes_with_one_weight():
    model = tiny_models.diffusion()
    before = model.digest()
    next(model.parameters()).data.view(-1)[0] += 1e-3
    assert model.digest() != before


def test_the_paper_network_has_the_published_size():
    # 35,751,939 parameters with ten classes and the null label
    model = Diffusion.create("ddpm", (3, 32, 32), tuple("0123456789"))
    assert sum(p.numel() for p in model.parameters()) == 35_751_939


def test_x_t_ends_as_noise_and_begins_as_the_image():
    model = tiny_models.diffusion()
    x0, eps = torch.ones(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
    # alpha_bar_0 = 1 - 1e-4; alpha_bar_999 = 4.04e-5 for linear betas 1e-4..0.02
    assert model.diffuse(x0, torch.tensor([0]), eps).mean() == pytest.approx((1 - 1e-4) ** 0.5)
    assert model.diffuse(x0, torch.tensor([999]), eps).mean() == pytest.approx(4.036e-5**0.5, rel=1e-3)


def test_antithetic_times_mirror_each_other():
    model = tiny_models.diffusion()
    t = model.times(9)
    assert len(t) == 9
    assert torch.equal(t[5:], 999 - t[:4])


def test_labels_drop_at_the_asked_rate():
    model = tiny_models.diffusion()
    torch.manual_seed(0)
    c = torch.zeros(20_000, dtype=torch.int64)
    # binomial sd of the share is sqrt(.1 * .9 / 20000) = 0.0021
    assert (model.drop_labels(c, 0.1) == 3).float().mean() == pytest.approx(0.1, abs=0.01)
    assert torch.equal(model.drop_labels(c, 0.0), c)


def test_a_model_without_null_label_says_so():
    model = tiny_models.diffusion(null=False)
    with pytest.raises(InputError, match="no null label"):
        model.null(torch.zeros(1, dtype=torch.int64))


def test_a_model_without_class_embedding_is_refused(tmp_path):
    UNet2DModel(
        sample_size=8, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    ).save_pretrained(tmp_path / "unet")  # fmt: skip
    DDPMScheduler().save_pretrained(tmp_path / "scheduler")
    with pytest.raises(InputError, match="no class embedding"):
        Diffusion.load(tmp_path)


def test_another_prediction_type_is_refused():
    with pytest.raises(InputError, match="'sample' is not supported"):
        Diffusion(tiny_models.diffusion().denoiser, DDPMScheduler(prediction_type="sample"), ("a", "b", "c"))


def test_a_truncated_weights_file_gives_one_line(tmp_path):
    tiny_models.diffusion().save(tmp_path)
    weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match="not a readable model") as caught:
        Diffusion.load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda weights: {k: v for k, v in weights.items() if k != "conv_in.bias"}, "has no weights conv_in.bias"),
        (
            lambda weights: {**weights, "conv_in.bias": weights["conv_in.bias"] * torch.nan},
            "conv_in.bias are not finite",
        ),
    ],
)
def test_weights_that_are_missing_or_not_finite_give_one_line(tmp_path, change, line):
    tiny_models.diffusion().save(tmp_path)
    path = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: value.contiguous() for name, value in change(load_file(path)).items()}, path, {"format": "pt"})
    with pytest.raises(InputError, match=line):
        Diffusion.load(tmp_path)


@pytest.mark.parametrize("file", ["model_index.json", "unet/config.json"])
def test_json_that_is_no_object_gives_one_line(tmp_path, file):
    tiny_models.diffusion().save(tmp_path)
    (tmp_path / file).write_text("[1]")
    with pytest.raises(InputError, match="is not a JSON object"):
        Diffusion.load(tmp_path)


def test_one_name_for_two_labels_is_refused():
    model = tiny_models.diffusion()
    with pytest.raises(InputError, match="duplicate class names 'a'"):
        Diffusion(model.denoiser, model.schedule, ("a", "b", "a"))


def test_a_missing_folder_gives_one_line():
    with pytest.raises(InputError, match="is not a folder"):
        Diffusion.load("./nowhere")


def test_class_names_are_kept_in_the_index(tmp_path):
    tiny_models.diffusion().save(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["class_names"] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"layers_per_block": 10**7}, "layers_per_block = 10000000 is not allowed; it is from 1 to 16"),
        ({"layers_per_block": "2"}, "layers_per_block = 2 is not allowed"),
        (
            {"block_out_channels": [8] * 10**5},
            "number of block_out_channels = 100000 is not allowed; it is from 1 to 12",
        ),
        ({"block_out_channels": []}, "number of block_out_channels = 0 is not allowed"),
        ({"block_out_channels": 8}, "number of block_out_channels = None is not allowed"),
        ({"block_out_channels": [8, 10**9]}, "block_out_channels = 1000000000 is not allowed; it is from 1 to 4096"),
        ({"block_out_channels": [8, 8.5]}, "block_out_channels = 8.5 is not allowed"),
        ({"num_class_embeds": 10**12}, "num_class_embeds = 1000000000000 is not allowed; it is from 1 to 100000"),
        ({"num_class_embeds": True}, "num_class_embeds = True is not allowed"),
        ({"in_channels": 10**6}, "in_channels = 1000000 is not allowed; it is from 1 to 64"),
        ({"sample_size": -8}, "sample_size = -8 is not allowed; it is from 1 to 1024"),
    ],
)
def test_a_network_that_would_never_be_built_is_refused_before_it_is(tmp_path, change, line):
    tiny_models.diffusion().save(tmp_path)
    path = tmp_path / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=line) as refusal:
        Diffusion.load(tmp_path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("steps", [10**10, 0, None, "1000"])
def test_a_schedule_of_too_many_steps_is_refused_before_it_is_built(tmp_path, steps):
    tiny_models.diffusion().save(tmp_path)
    path = tmp_path / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_train_timesteps": steps}))
    with pytest.raises(InputError, match=f"num_train_timesteps = {steps} is not allowed; it is from 1 to 100000"):
        Diffusion.load(tmp_path)


@pytest.mark.parametrize("kind", ["timestep", "identity"])
def test_a_label_embedding_that_is_no_table_is_refused(tmp_path, kind):
    tiny_models.diffusion().save(tmp_path)
    path = tmp_path / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"class_embed_type": kind}))
    with pytest.raises(InputError, match=f"class_embed_type = {kind} is not a table of labels"):
        Diffusion.load(tmp_path)


def test_diffusers_opens_a_saved_model_with_its_own_classes(tmp_path):
    model = tiny_models.diffusion()
    model.save(tmp_path)
    pipeline = DiffusionPipeline.from_pretrained(tmp_path, local_files_only=True)
    assert isinstance(pipeline, DDPMPipeline)
    x, t, c = torch.randn(2, 1, 8, 8), torch.tensor([10, 500]), torch.tensor([0, 3])
    with torch.no_grad():
        theirs = pipeline.unet(x, t, class_labels=c).sample
        torch.testing.assert_close(theirs, model.eval()(x, t, c))
    assert torch.equal(pipeline.scheduler.alphas_cumprod, model.alpha_bar)


def test_a_folder_saved_before_still_loads(tmp_path):
    tiny_models.diffusion().save(tmp_path)
    path = tmp_path / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_class_name": "SafemaxPipeline"}))
    assert Diffusion.load(tmp_path).class_names == ("a", "b", "c")


def test_weights_in_a_pickle_alone_name_the_way_out(tmp_path):
    tiny_models.diffusion().save(tmp_path)
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").rename(
        tmp_path / "unet" / "diffusion_pytorch_model.bin"
    )
    with pytest.raises(InputError, match=r"only as .bin, a pickle.*convert --bin=.* --output=NEW_FOLDER") as caught:
        Diffusion.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_weights_of_a_variant_alone_name_the_file(tmp_path):
    tiny_models.diffusion().save(tmp_path)
    unet = tmp_path / "unet"
    (unet / "diffusion_pytorch_model.safetensors").rename(unet / "diffusion_pytorch_model.fp16.safetensors")
    with pytest.raises(InputError, match=r"only as diffusion_pytorch_model.fp16.safetensors; rename"):
        Diffusion.load(tmp_path)


def test_names_decide_whether_the_last_label_is_the_null_label(tmp_path):
    tiny_models.diffusion(null=False).save(tmp_path)
    path = tmp_path / "model_index.json"
    path.write_text(
        json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "class_names"})
    )
    model = Diffusion.load(tmp_path)
    assert (model.num_classes, model.has_null, model.names_are_stated) == (2, True, False)
    model.name_classes(("x", "y", "z"))
    assert (model.num_classes, model.has_null, model.names_are_stated) == (3, False, True)
    with pytest.raises(InputError, match="5 class names do not fit 3 label embeddings"):
        model.name_classes(tuple("abcde"))
