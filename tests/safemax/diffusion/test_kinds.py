"""Every kind of network behind one Diffusion, held beside diffusers' own pipelines on random weights."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiTPipeline, StableDiffusionPipeline
from diffusers.pipelines.dit import pipeline_dit
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.tiny_pipelines import autoencoder, write_dit, write_stable_diffusion
from safemax.data.batches import Batches, derive_seed, to_float
from safemax.data.dataset import Split
from safemax.diffusion.codec import Codec, encoded
from safemax.diffusion.condition import Prompt, Prompts
from safemax.diffusion.model import Diffusion
from safemax.diffusion.sampling import Sampler, sample
from safemax.errors import InputError
from tests.support import tiny_kinds, tiny_models

CLOSE: dict[str, Any] = {"rtol": 0.0, "atol": 1e-5}
GUIDED = Sampler("ddim", 20, 3.0, 0.0, False)
PROMPTS = (
    Prompt("a handwritten zero", "0"), Prompt("a handwritten three", "3"), Prompt("a photo of a three", "3"),
    Prompt("the digit three", "3", held_out=True),
)  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write pipelines with random weights, as diffusers saves them; the DiT has ImageNet's number of labels."""
    folder = tmp_path_factory.mktemp("pipelines")
    torch.manual_seed(0)
    names = [f"thing {k}, object {k}" for k in range(1000)]
    words = ("handwritten", "photo", "zero", "three")
    return {
        "dit": write_dit(folder / "dit", autoencoder(8), names),
        "epsilon": write_stable_diffusion(folder / "epsilon", autoencoder(8), words),
        "v_prediction": write_stable_diffusion(folder / "v", autoencoder(8), words, prediction="v_prediction"),
    }


def noise(rows: int, shape: tuple[int, ...]) -> Tensor:
    """Return the noise that `sample` starts from at seed 0."""
    return torch.randn(rows, *shape, generator=torch.Generator().manual_seed(derive_seed(0, 0)))


def told_by(diffusion: Diffusion) -> Prompts:
    assert isinstance(diffusion.condition, Prompts)
    return diffusion.condition


def pipeline_of(kind: type, folder: Path) -> Any:
    pipeline = kind.from_pretrained(folder, local_files_only=True)  # type: ignore[attr-defined]
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_a_dit_predicts_and_draws_as_its_own_pipeline(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, diffusion = pipeline_of(DiTPipeline, folders["dit"]), Diffusion.load(folders["dit"]).eval()
    assert (diffusion.image_shape, diffusion.x0_shape, diffusion.num_classes) == ((1, 8, 8), (4, 4, 4), 1000)
    x_t, t, c = torch.randn(3, 4, 4, 4), torch.tensor([0, 500, 999]), torch.tensor([0, 999, 1000])
    with torch.no_grad():
        theirs = pipeline.transformer(x_t, t, class_labels=c).sample[:, :4]
        torch.testing.assert_close(diffusion(x_t, t, c), theirs, **CLOSE)
    monkeypatch.setattr(pipeline_dit, "randn_tensor", lambda shape, **_: noise(len(shape) and shape[0], shape[1:]))
    options = {"guidance_scale": 3.0, "num_inference_steps": 20, "output_type": "pt", "return_dict": False}
    theirs = pipeline(class_labels=[3, 7], **options)[0]
    ours = sample(diffusion, torch.tensor([3, 7]), GUIDED, seed=0)
    torch.testing.assert_close((ours + 1) / 2, theirs, **CLOSE)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_stable_diffusion_draws_as_its_own_pipeline(folders: dict[str, Path], prediction: str) -> None:
    pipeline = pipeline_of(StableDiffusionPipeline, folders[prediction])
    diffusion = Diffusion.load(folders[prediction], prompts=PROMPTS)
    assert diffusion.class_names == ("0", "3")
    theirs = pipeline(
        [PROMPTS[0].text, PROMPTS[1].text, PROMPTS[3].text], guidance_scale=3.0, num_inference_steps=20,
        latents=noise(3, (4, 4, 4)), output_type="pt", return_dict=False,
    )[0]  # fmt: skip
    assert told_by(diffusion).ask("The digit  THREE", ("0", "3")) == (4, 1)
    ours = sample(diffusion, torch.tensor([0, 1, 4]), GUIDED, seed=0)
    torch.testing.assert_close((ours + 1) / 2, theirs, **CLOSE)


@pytest.mark.parametrize(("name", "kind"), [("dit", DiTPipeline), ("v_prediction", StableDiffusionPipeline)])
def test_what_is_saved_is_what_the_pipeline_opens_and_only_the_denoiser_differs(
    folders: dict[str, Path], tmp_path: Path, name: str, kind: type
) -> None:
    diffusion = Diffusion.load(folders[name], prompts=PROMPTS if name != "dit" else ())
    with torch.no_grad():
        next(diffusion.parameters()).add_(1)
    diffusion.save(tmp_path)
    pipeline, again = pipeline_of(kind, tmp_path), Diffusion.load(tmp_path)
    assert again.identity() == diffusion.identity()
    theirs = getattr(pipeline, diffusion.kind.part).state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in diffusion.denoiser.state_dict().items())
    for path in sorted(folders[name].rglob("*.*")):
        relative = path.relative_to(folders[name])
        if path.suffix == ".json" and relative.parts[0] != diffusion.kind.part:
            assert json.loads((tmp_path / relative).read_text()) == json.loads(path.read_text()), relative
        elif relative.parts[0] != diffusion.kind.part:
            assert (tmp_path / relative).read_bytes() == path.read_bytes(), relative
    assert not list(tmp_path.rglob("*.bin"))


def test_some_classes_of_a_dit_are_a_model_of_their_own_with_the_same_weights(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    whole = Diffusion.load(folders["dit"]).eval()
    some = whole.for_classes(("Object_7", "thing 3")).eval()
    x_t, t = torch.randn(3, 4, 4, 4), torch.tensor([5, 5, 5])
    with torch.no_grad():
        theirs = whole(x_t, t, torch.tensor([7, 3, 1000]))
        assert torch.equal(some(x_t, t, torch.tensor([0, 1, 2])), theirs)
    some.save(tmp_path)
    again = Diffusion.load(tmp_path)
    assert (again.class_names, again.num_classes, again.has_null) == (("Object_7", "thing 3"), 2, True)
    assert again.identity() == some.identity() != whole.identity()
    assert again.denoiser.config.num_embeds_ada_norm == 1000
    with pytest.raises(InputError, match="'lion' is the name of no class of the model"):
        whole.for_classes(("lion",))


def test_a_prediction_of_v_is_turned_into_the_noise() -> None:
    # v = sqrt(a) eps - sqrt(1 - a) x0 for x_t = sqrt(a) x0 + sqrt(1 - a) eps: a network that is right about v is so about eps.
    diffusion = tiny_kinds.text()
    x0, eps, t = torch.randn(5, 4, 4, 4), torch.randn(5, 4, 4, 4), torch.tensor([0, 10, 500, 900, 999])
    a = diffusion.alpha_bar[t].view(-1, 1, 1, 1)
    diffusion.denoiser.forward = lambda *_, **__: (a.sqrt() * eps - (1 - a).sqrt() * x0,)
    torch.testing.assert_close(diffusion(diffusion.diffuse(x0, t, eps), t, torch.zeros(5, dtype=torch.int64)), eps)


@pytest.mark.parametrize("kind", tiny_kinds.KINDS)
def test_in_training_the_same_draws_give_the_same_prediction(kind: str) -> None:
    # diffusers' DiT would drop a tenth of the labels in each block by itself.
    diffusion = tiny_kinds.KINDS[kind]().train()
    x_t, t, c = torch.randn(64, *diffusion.x0_shape), torch.full((64,), 500), torch.ones(64, dtype=torch.int64)
    with torch.no_grad():
        one, other, evaluated = diffusion(x_t, t, c), diffusion(x_t, t, c), diffusion.eval()(x_t, t, c)
    assert torch.equal(one, other)
    torch.testing.assert_close(one, evaluated)  # class b has one prompt


def test_in_training_a_class_is_told_by_each_of_its_prompts_and_by_no_held_out_one() -> None:
    condition = told_by(tiny_kinds.text()).train()
    torch.manual_seed(0)
    told = condition(torch.zeros(100, dtype=torch.int64))["encoder_hidden_states"]
    rows = {int((condition.table == each).all(-1).all(-1).nonzero()) for each in told}
    assert rows == {0, 4}
    assert condition.asked_by(0, held_out=True) == [5]
    assert condition.asked_by(0, held_out=False) == [4]
    null = condition(torch.full((9,), 3))["encoder_hidden_states"]
    assert torch.equal(null, condition.table[3].expand_as(null))


def test_the_variance_that_a_network_predicts_gets_no_gradient() -> None:
    diffusion = tiny_kinds.latent_dit()
    c = torch.zeros(4, dtype=torch.int64)
    diffusion.denoising_loss(torch.randn(4, 4, 4, 4), c).backward()
    gradient = diffusion.denoiser.proj_out_2.weight.grad
    assert gradient[:4].any()
    assert not gradient[4:].any()


def test_latents_are_made_once_and_mirrored_before_they_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAFEMAX_CACHE", str(tmp_path))
    codec, split = Codec(autoencoder(8, width=8)), tiny_models.split(12)
    latents = encoded(codec, split, flip=True)
    direct = codec.encode(to_float(split.images))
    torch.testing.assert_close(latents.images.float(), direct, rtol=2e-3, atol=2e-3)
    assert latents.mirrored is not None
    torch.testing.assert_close(
        latents.mirrored.float(), codec.encode(to_float(split.images.flip(-1))), rtol=2e-3, atol=2e-3
    )
    monkeypatch.setattr(codec, "encode", None)  # the second time it is not needed
    again = encoded(codec, split, flip=True)
    assert torch.equal(again.images, latents.images)
    assert again.mirrored is not None
    batches = Batches(again, (0,), forget_size=4, retain_size=4, seed=0, flip=True)
    x0 = torch.cat([part.x0 for step in range(4) for part in (batches(step).forget, batches(step).retain)])
    both = torch.cat([again.images, again.mirrored]).float()
    assert all((both == each).all(-1).all(-1).all(-1).any() for each in x0)
    assert not all((again.images.float() == each).all(-1).all(-1).all(-1).any() for each in x0)
    assert isinstance(encoded(None, split, flip=True), Split)


@pytest.mark.parametrize("kind", ["latent_dit", "text"])
def test_copies_share_the_codec_and_save_it(kind: str, tmp_path: Path) -> None:
    diffusion = tiny_kinds.KINDS[kind]()
    assert copy.deepcopy(diffusion).codec is diffusion.codec
    assert not any(name.startswith("codec") for name, _ in diffusion.named_parameters())
    diffusion.save(tmp_path)
    again = Diffusion.load(tmp_path)
    assert again.identity() == diffusion.identity()
    assert load_file(tmp_path / "vae" / "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize(
    ("part", "change", "line"),
    [
        (
            "unet",
            {"addition_embed_type": "text_time"},
            "addition_embed_type = text_time.*nearest .* Stable Diffusion 1 or 2",
        ),
        ("unet", {"in_channels": 9}, "has 9 channels in and 4 out: it completes given images.*nearest"),
        ("unet", {"_class_name": "FluxTransformer2DModel"}, "holds a FluxTransformer2DModel; only .* can be unlearned"),
        ("text_encoder", {"model_type": "t5"}, "has the text encoder t5; only CLIP"),
        ("vae", {"latent_channels": "x"}, "is not a readable AutoencoderKL"),
    ],
)
def test_what_cannot_be_unlearned_is_refused_with_the_nearest_that_can(
    folders: dict[str, Path], tmp_path: Path, part: str, change: dict[str, Any], line: str
) -> None:
    Diffusion.load(folders["epsilon"], prompts=PROMPTS).save(tmp_path)
    (tmp_path / "classes.json").unlink()
    path = tmp_path / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=line) as caught:
        Diffusion.load(tmp_path, prompts=PROMPTS)
    assert "\n" not in str(caught.value)


def test_a_text_model_without_prompts_says_how_to_give_them(folders: dict[str, Path]) -> None:
    with pytest.raises(InputError, match=r"takes prompts: concepts = FILE.csv .* prompt = 'a photo of a {}'"):
        Diffusion.load(folders["epsilon"])
    with pytest.raises(InputError, match="takes labels, not prompts"):
        Diffusion.load(folders["dit"], prompts=PROMPTS)


@pytest.mark.parametrize(
    ("prompts", "line"),
    [
        ([Prompt("a", "x"), Prompt("A ", "y")], "'a' is given twice"),
        ([Prompt("a", "x", held_out=True)], "'x' has only held-out prompts"),
        ([Prompt(" ", "x")], "an empty prompt is not allowed"),
    ],
)
def test_prompts_that_tell_no_class_are_refused(folders: dict[str, Path], prompts: list[Prompt], line: str) -> None:
    with pytest.raises(InputError, match=line):
        Diffusion.load(folders["epsilon"], prompts=prompts)
