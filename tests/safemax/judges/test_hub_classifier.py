"""Classifiers of transformers and timm judge as they are: config-driven, from safetensors alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from safemax.errors import InputError
from safemax.judges import none_head
from safemax.judges.classifier import predict
from safemax.judges.files import load_judge, save
from tests.support import tiny_models

NAMES, SHAPE = ("a", "b", "c"), (1, 8, 8)
ONE_LINE = r"\A[^\n]*\Z"


def written(folder: Path, kind: str, labels: tuple[str, ...] = NAMES) -> Any:
    """Save a tiny classifier as transformers does, with its preprocessing, and return it."""
    from transformers import (
        ResNetConfig,
        ResNetForImageClassification,
        ViTConfig,
        ViTForImageClassification,
    )

    torch.manual_seed(0)
    id2label = dict(enumerate(labels))
    if kind == "resnet":
        model = ResNetForImageClassification(
            ResNetConfig(depths=[1, 1], hidden_sizes=[8, 16], embedding_size=8, id2label=id2label)
        )
    else:
        model = ViTForImageClassification(
            ViTConfig(
                hidden_size=16,
                num_hidden_layers=5,
                num_attention_heads=2,
                intermediate_size=16,
                image_size=16,
                patch_size=4,
                id2label=id2label,
            )  # fmt: skip
        )
    model.eval().save_pretrained(folder)
    stated = {"size": {"height": 16, "width": 16}, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
    (folder / "preprocessor_config.json").write_text(json.dumps(stated))
    return model


def images() -> torch.Tensor:
    return 2 * torch.rand(5, *SHAPE, generator=torch.Generator().manual_seed(0)) - 1


def theirs(model: Any) -> torch.Tensor:
    """Return the logits of the classifier for our images, prepared by hand."""
    mean, std = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1), torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    x = F.interpolate((images() + 1) / 2, (16, 16), mode="bilinear", antialias=True).expand(-1, 3, -1, -1)
    with torch.no_grad():
        return model(pixel_values=(x - mean) / std).logits


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_it_answers_as_transformers_does_and_comes_back_from_our_own_folder(tmp_path: Path, kind: str) -> None:
    model = written(tmp_path / "theirs", kind)
    judge = load_judge(tmp_path / "theirs", class_names=NAMES, image_shape=SHAPE)
    torch.testing.assert_close(predict(judge, images())[0], theirs(model).softmax(1), atol=1e-4, rtol=1e-4)
    save(judge, tmp_path / "ours")
    again = load_judge(tmp_path / "ours", class_names=NAMES)
    assert torch.equal(predict(again, images())[0], predict(judge, images())[0])


def test_its_classes_are_matched_by_name_in_any_order(tmp_path: Path) -> None:
    model = written(tmp_path, "resnet", ("c", "A", "b"))
    judge = load_judge(tmp_path, class_names=NAMES, image_shape=SHAPE)
    torch.testing.assert_close(
        predict(judge, images())[0], theirs(model).softmax(1)[:, [1, 2, 0]], atol=1e-4, rtol=1e-4
    )


def test_a_classifier_of_more_classes_judges_by_those_of_the_data_alone(tmp_path: Path) -> None:
    model = written(tmp_path / "theirs", "resnet", ("dog, hound", "c, letter_c", "tench", "B", "the a, a"))
    judge = load_judge(tmp_path / "theirs", class_names=NAMES, image_shape=SHAPE)
    expected = theirs(model)[:, [4, 3, 1]].softmax(1)
    torch.testing.assert_close(predict(judge, images())[0], expected, atol=1e-4, rtol=1e-4)
    save(judge, tmp_path / "ours")
    assert torch.equal(predict(load_judge(tmp_path / "ours"), images())[0], predict(judge, images())[0])


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_none_heads_are_built_on_it(tmp_path: Path, kind: str) -> None:
    written(tmp_path / "theirs", kind)
    plain = load_judge(tmp_path / "theirs", class_names=NAMES, image_shape=SHAPE)
    judge = none_head.train_none_heads(plain, tiny_models.dataset(), draws=1, progress=False)
    save(judge, tmp_path / "ours")
    probs = predict(load_judge(tmp_path / "ours"), images())[0]
    torch.testing.assert_close(probs, predict(judge, images())[0])
    torch.testing.assert_close(probs[:, :3] / (1 - probs[:, 3:]), predict(plain, images())[0], atol=1e-4, rtol=1e-4)


def without_preprocessing(folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink()


def of_other_classes(folder: Path) -> None:
    written(folder, "resnet", ("a", "b", "dog"))


def of_two_classes_of_a_name(folder: Path) -> None:
    written(folder, "resnet", ("a", "b", "c, crane", "C, machine"))


def of_unnamed_classes(folder: Path) -> None:
    written(folder, "resnet", ("LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3"))


def without_safetensors(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def of_timm(folder: Path) -> None:
    config = {"architecture": "resnet18", "num_classes": 3, "pretrained_cfg": {"input_size": [3, 224, 224]}}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (without_preprocessing, "preprocessor_config.json, which says how its pixels are normalised, is missing"),
        (of_other_classes, "no class is called 'c'; it has a, b, dog"),
        (of_two_classes_of_a_name, "2 classes are called 'c'"),
        (of_unnamed_classes, "it has 4 classes without names, the data have 3"),
        (without_safetensors, "model.safetensors"),
        (of_timm, "pip install timm"),
    ],
)
def test_what_cannot_judge_is_refused_in_one_line(tmp_path: Path, damage: Any, words: str) -> None:
    written(tmp_path, "resnet")
    damage(tmp_path)
    with pytest.raises(InputError, match=ONE_LINE) as refusal:
        load_judge(tmp_path, class_names=NAMES, image_shape=SHAPE)
    assert words in str(refusal.value)
