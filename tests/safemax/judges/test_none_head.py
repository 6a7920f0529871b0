from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from safemax.data.batches import to_float
from safemax.data.dataset import Dataset
from safemax.errors import InputError
from safemax.judges import none_head
from safemax.judges.classifier import Ensemble, Judge, predict
from safemax.judges.config import JudgeConfig
from safemax.judges.files import load_judge, save
from safemax.judges.load import identity, judges
from tests.support import tiny_models

NAMES = ("a", "b", "c")


def dataset() -> Dataset:
    """Return the tiny data set in colour."""
    grey = tiny_models.dataset()
    train, test = (
        replace(each, images=each.images.expand(-1, 3, -1, -1).contiguous()) for each in (grey.train, grey.test)
    )
    return Dataset("tiny", train, test, NAMES, True)


def plain(seed: int = 0) -> Judge:
    torch.manual_seed(seed)
    return Judge("resnet20", NAMES, (3, 8, 8)).eval()


def headed(seed: int = 0, backbone: int = 0) -> Judge:
    return none_head.train_none_heads(plain(backbone), dataset(), seeds=[seed], draws=2, progress=False)


def images() -> Tensor:
    return to_float(dataset().test.images[:9])


def saved(folder: Path, seed: int) -> Path:
    """Save a plain judge and return its folder."""
    save(plain(seed), folder / f"backbone-{seed}")
    return folder / f"backbone-{seed}"


def test_its_class_probabilities_are_the_frozen_networks_times_the_share_that_is_not_none():
    # p(k) = p(k | the network) (1 - p(none)), so p(k) / (1 - p(none)) is the network's own answer
    found, expected = predict(headed(), images())[0], predict(plain(), images())[0]
    assert found.shape == (9, 4)
    torch.testing.assert_close(found[:, :3] / (1 - found[:, 3:]), expected)
    torch.testing.assert_close(found.sum(1), torch.ones(9))


def test_its_features_are_the_networks_own_then_mean_and_deviation_of_four_levels():
    # 64 of the network, then two numbers a channel of the levels of 16, 16, 32 and 64 channels
    judge = headed()
    found = predict(judge, images())[1]
    assert found.shape == (9, 64 + 2 * 128)
    torch.testing.assert_close(found[:, :64], predict(plain(), images())[1])
    x = images()
    network = plain().network
    first = torch.relu(network.bn1(network.conv1(x)))
    torch.testing.assert_close(found[:, 64:80], first.mean((2, 3)))
    torch.testing.assert_close(found[:, 192:208], first.flatten(2).std(2, correction=0))


def test_several_heads_on_one_network_vote_by_the_mean_of_their_probabilities():
    both = none_head.train_none_heads(plain(), dataset(), seeds=[0, 1], draws=2, progress=False)
    assert both.arch == "resnet20-none2"
    statistics = both.features(images())
    odds = torch.stack([head(statistics) for head in both.network.linear.heads])
    torch.testing.assert_close(predict(both, images())[0][:, 3], odds.sigmoid().mean(0))
    torch.testing.assert_close(predict(both, images())[0].sum(1), torch.ones(9))


@pytest.mark.parametrize("arch", ["small", "whitened"])
def test_any_judge_can_have_heads(arch):
    data = dataset()
    shape = (3, 24, 24) if arch == "whitened" else (3, 8, 8)
    large = replace(
        data,
        train=replace(data.train, images=data.train.images.repeat(1, 1, shape[1] // 8, shape[1] // 8)),
    )
    judge = none_head.train_none_heads(Judge(arch, NAMES, shape).eval(), large, draws=1, progress=False)
    assert predict(judge, to_float(large.train.images[:5]))[0].shape == (5, 4)


def test_training_moves_the_head_alone():
    judge, before = headed(), plain()
    frozen = {
        **judge.network.body.state_dict(),
        **{f"linear.{k}": v for k, v in judge.network.linear.classes.state_dict().items()},
    }
    assert frozen.keys() == before.network.state_dict().keys()
    assert all(torch.equal(value, before.network.state_dict()[name]) for name, value in frozen.items())
    untrained = none_head._with_heads(plain(), [0])
    assert not torch.equal(*(each.network.linear.heads[0].hidden.weight for each in (judge, untrained)))


def test_the_same_seed_gives_the_same_head_and_another_seed_another():
    one, again, other = headed(3), headed(3), headed(4)
    assert torch.equal(one.network.linear.heads[0].hidden.weight, again.network.linear.heads[0].hidden.weight)
    assert not torch.equal(one.network.linear.heads[0].hidden.weight, other.network.linear.heads[0].hidden.weight)


def test_a_head_learns_to_tell_noise_from_real_images():
    judge = none_head.train_none_heads(plain(), dataset(), draws=10, progress=False)
    noise = torch.randn(60, 3, 8, 8, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    real = to_float(dataset().test.images)
    assert (predict(judge, noise)[0].argmax(1) == 3).double().mean() >= 0.9
    assert (predict(judge, real)[0].argmax(1) == 3).double().mean() <= 0.1


def test_a_judge_with_a_head_comes_back_from_disk_and_votes_in_an_ensemble(tmp_path):
    both = Ensemble([headed(0), headed(1, backbone=1)])
    save(both, tmp_path)
    loaded = load_judge(tmp_path, class_names=NAMES)
    assert loaded.reject
    torch.testing.assert_close(predict(loaded, images()), predict(both, images()))


@pytest.mark.parametrize(
    "judge", [Judge("resnet20", NAMES, (3, 8, 8), reject=True), Ensemble([Judge("small", NAMES, (3, 8, 8))])]
)
def test_a_judge_that_rejects_already_or_an_ensemble_is_refused(judge):
    with pytest.raises(InputError, match="none_head needs one judge without a reject class"):
        none_head.train_none_heads(judge, dataset(), progress=False)


def test_the_config_builds_heads_on_the_plain_judge_or_on_given_ones_once(tmp_path, monkeypatch):
    monkeypatch.setenv("SAFEMAX_CACHE", str(tmp_path / "cache"))
    first, second = saved(tmp_path, 0), saved(tmp_path, 1)
    config = JudgeConfig(judge=str(first), reject_judge="none_head", reject_judges=2, judge_steps=1)
    on_plain = judges(dataset(), config, progress=False)
    assert on_plain.reject.answers == (*NAMES, "reject")
    assert isinstance(on_plain.reject, Ensemble)
    assert [each.arch for each in on_plain.reject.members] == ["resnet20-none2"]
    assert len(list((tmp_path / "cache" / "judges").glob("none-*"))) == 1
    again = judges(dataset(), config, progress=False)
    assert again.digest == on_plain.digest
    elsewhere = replace(config, reject_judge=f"none_head:{first},{second}")
    mixed = judges(dataset(), elsewhere, progress=False)
    stems = [each.network.body.conv1.weight for each in mixed.reject.members]
    assert not torch.equal(*stems)
    assert len({identity(dataset(), each) for each in (config, elsewhere, replace(config, judge_steps=2))}) == 3


def test_a_backbone_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="is not a judge"):
        none_head.ensemble(f"none_head:{tmp_path}/none.safetensors", plain(), dataset(), [1], progress=False)
