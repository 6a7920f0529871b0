"""CLIP judges without training: by prompts of the classes and of "none of these", as transformers' own model compares them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import CLIPConfig, CLIPModel

from benchmarks.tiny_pipelines import _tokenizer
from safemax.errors import InputError
from safemax.judges import none_head, zero_shot
from safemax.judges.classifier import predict
from safemax.judges.config import JudgeConfig
from safemax.judges.files import load_judge, save
from safemax.judges.load import identity, judges
from tests.support import tiny_models

NAMES, SHAPE = ("a", "b", "c"), (1, 8, 8)
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]


def written(folder: Path) -> CLIPModel:
    """Save a CLIP of random weights as transformers does, and return it."""
    torch.manual_seed(0)
    tokenizer = _tokenizer(("photo", "letter"))
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 32, "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 5, "num_attention_heads": 2,
              "image_size": 16, "patch_size": 4}  # fmt: skip
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    stated = {"crop_size": 16, "do_center_crop": True, "image_mean": MEAN, "image_std": STD}
    (folder / "preprocessor_config.json").write_text(json.dumps(stated))
    return model


def images() -> torch.Tensor:
    return 2 * torch.rand(5, *SHAPE, generator=torch.Generator().manual_seed(0)) - 1


def theirs(model: CLIPModel, texts: list[str]) -> torch.Tensor:
    """Return CLIP's own logits of our images, prepared by hand, for texts one at a time."""
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (MEAN, STD))
    x = F.interpolate(images(), (16, 16), mode="bicubic", antialias=True).expand(-1, 3, -1, -1)
    pixels, tokenizer = ((x + 1) / 2 - mean) / std, _tokenizer(("photo", "letter"))
    with torch.no_grad():
        columns = [
            model(pixel_values=pixels, **tokenizer(text, return_tensors="pt")).logits_per_image for text in texts
        ]
    return torch.cat(columns, 1)


def test_it_answers_as_clip_compares_and_comes_back_from_our_own_folder(tmp_path: Path) -> None:
    model = written(tmp_path / "clip")
    judge = load_judge(tmp_path / "clip", class_names=NAMES, image_shape=SHAPE, prompt="the letter {}", reject=False)
    expected = theirs(model, [f"the letter {name}" for name in NAMES]).softmax(1)
    torch.testing.assert_close(predict(judge, images())[0], expected, atol=1e-4, rtol=1e-4)
    save(judge, tmp_path / "ours")
    again = load_judge(tmp_path / "ours", class_names=NAMES)
    assert torch.equal(predict(again, images())[0], predict(judge, images())[0])


def test_its_last_answer_is_that_any_of_the_prompts_for_none_fits(tmp_path: Path) -> None:
    model = written(tmp_path / "clip")
    judge = load_judge(tmp_path / "clip", class_names=NAMES, image_shape=SHAPE, reject=True)
    logits = theirs(model, [*(f"a photo of a {name}" for name in NAMES), *zero_shot.NONE])
    expected = logits.softmax(1)
    probs = predict(judge, images())[0]
    assert judge.answers == (*NAMES, "reject")
    torch.testing.assert_close(probs[:, :3], expected[:, :3], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(probs[:, 3], expected[:, 3:].sum(1), atol=1e-4, rtol=1e-4)
    save(judge, tmp_path / "ours")
    assert torch.equal(predict(load_judge(tmp_path / "ours"), images())[0], probs)


def test_it_is_both_judges_of_a_data_set_measured_as_all_judges_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAFEMAX_CACHE", str(tmp_path / "cache"))
    written(tmp_path / "clip")
    place, dataset = str(tmp_path / "clip"), tiny_models.dataset()
    config = JudgeConfig(judge=place, reject_judge=place, judge_prompt="the letter {}")
    found = judges(dataset, config, progress=False)
    assert (found.plain.reject, found.reject.reject) == (False, True)
    assert set(found.about["reject"]) == set(found.about["plain"])
    assert identity(dataset, config) != identity(dataset, JudgeConfig(judge=place, reject_judge=place))


def test_none_heads_are_built_on_it(tmp_path: Path) -> None:
    written(tmp_path / "clip")
    plain = load_judge(tmp_path / "clip", class_names=NAMES, image_shape=SHAPE)
    judge = none_head.train_none_heads(plain, tiny_models.dataset(), draws=1, progress=False)
    save(judge, tmp_path / "ours")
    torch.testing.assert_close(predict(load_judge(tmp_path / "ours"), images())[0], predict(judge, images())[0])


def test_what_cannot_judge_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        InputError, match=r"judge_prompt = 'a photo' is not allowed; it must contain \{\}, in place of a class"
    ):
        JudgeConfig(judge_prompt="a photo")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    configs = {"judge": JudgeConfig(judge="nobody/clip"), "reject_judge": JudgeConfig(reject_judge="nobody/clip")}
    for role, config in configs.items():
        with pytest.raises(
            InputError, match=rf"\A{role} = nobody/clip is neither a folder nor a model that the hub gives"
        ):
            judges(tiny_models.dataset(), config, progress=False)


def test_a_hub_id_is_read_from_the_hubs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFEMAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub = tmp_path / "hub"
    snapshot = hub / "models--somebody--clip" / "snapshots" / "0"
    written(snapshot)
    (hub / "models--somebody--clip" / "refs").mkdir()
    (hub / "models--somebody--clip" / "refs" / "main").write_text("0")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    config = JudgeConfig(judge="somebody/clip", reject_judge="somebody/clip")
    assert judges(tiny_models.dataset(), config, progress=False).plain.arch == zero_shot.ARCH
