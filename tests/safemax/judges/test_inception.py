"""The network of the standard FID, where torch-fidelity is installed, and its way into the panel."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from safemax import metric_keys as keys
from safemax.data.dataset import Split
from safemax.data.sources import load
from safemax.errors import InputError
from safemax.evaluation.measure import measure
from safemax.evaluation.metric_info import meaning
from safemax.evaluation.samples import Samples
from safemax.judges import inception
from safemax.judges.config import JudgeConfig
from safemax.judges.inception import Moments, by_class, extract, find_inception, load_inception
from safemax.judges.load import judges
from safemax.judges.reference import reference
from safemax.metrics.frechet import FrechetDistance, frechet_distance
from tests.support import tiny_models


class Colours(nn.Module):
    """A feature network of 12 numbers in the place of Inception, for what does not depend on which network it is."""

    digest, num_features = "colours", 12

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.eye(12), requires_grad=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.adaptive_avg_pool2d(images.expand(-1, 3, -1, -1).float(), 2).flatten(1) @ self.weights


def pictures(n: int, channels: int = 3, size: int = 32) -> torch.Tensor:
    shape = (n, channels, size, size)
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(n)).to(torch.uint8)


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """Return random weights for the network, whose activations keep their size through all layers."""
    reason = "torch-fidelity is not installed: pip install '.[inception]'"
    library = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3", reason=reason)
    torch.manual_seed(0)
    with patch.object(nn.Module, "load_state_dict"), patch.object(library, "load_state_dict_from_url"):
        network = library.FeatureExtractorInceptionV3("it", ["2048"])
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def test_features_are_those_of_torch_fidelitys_network(weights, tmp_path):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    torch.save(weights, tmp_path / "w.pth")
    save_file(weights, tmp_path / "w.safetensors")
    theirs = FeatureExtractorInceptionV3("it", ["2048"], feature_extractor_weights_path=str(tmp_path / "w.pth"))
    ours = load_inception(str(tmp_path / "w.safetensors"))
    images = pictures(3)
    torch.testing.assert_close(ours(images), theirs(images)[0], rtol=1e-4, atol=1e-4)
    grey = pictures(2, channels=1, size=8)
    torch.testing.assert_close(ours(grey), ours(grey.expand(-1, 3, -1, -1)))


def test_auto_takes_the_published_weights_from_torchs_cache_and_only_for_natural_images_of_32_pixels(
    weights, tmp_path, monkeypatch
):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    natural = replace(tiny_models.dataset(), train=Split(pictures(4), torch.arange(4) % 3), natural=True)
    assert find_inception("auto", natural) is None
    file = tmp_path / "checkpoints" / inception.URL.rpartition("/")[2]
    file.parent.mkdir()
    torch.save(weights, file)
    found = find_inception("auto", natural)
    assert found is not None
    assert found.digest == hashlib.sha256(file.read_bytes()).hexdigest()
    assert find_inception("auto", tiny_models.dataset()) is None


def test_without_torch_fidelity_auto_takes_none_and_a_path_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(inception, "find_spec", lambda name: None)
    save_file({"a": torch.zeros(1)}, tmp_path / "w.safetensors")
    assert find_inception("auto", tiny_models.dataset()) is None
    assert find_inception("none", tiny_models.dataset()) is None
    with pytest.raises(InputError, match=r"needs torch-fidelity, which is not installed: pip install"):
        find_inception(str(tmp_path / "w.safetensors"), tiny_models.dataset())


def test_a_network_adds_the_standard_fid_against_all_real_images_of_the_retained_classes(tmp_path, monkeypatch):
    monkeypatch.setenv("SAFEMAX_CACHE", str(tmp_path))
    data = tiny_models.dataset()
    without = judges(data, JudgeConfig(judge_steps=1, reject_judges=1, inception="none"), progress=False)
    jury = replace(without, inception=Colours())
    real = reference(data, jury)
    assert [each.count for each in real.inception] == [20, 20, 20]
    samples = Samples(data.test.images, data.test.labels, data.test.images, data.test.labels)
    found = measure(samples, jury, real, (1,))
    kept, drawn = (extract(Colours(), each.images[each.labels != 1]) for each in (data.train, data.test))
    expected = FrechetDistance(12, Moments.of(kept))
    expected.update(drawn)
    assert found[keys.FID_INCEPTION] == pytest.approx(expected.compute()["fid"].item(), rel=1e-6)
    assert found[keys.FID_INCEPTION + keys.SE] == pytest.approx(expected.compute()["se"].item(), rel=1e-6)
    assert meaning(keys.FID_INCEPTION + keys.DELTA).better == "lower"
    other = measure(samples, without, replace(real, inception=()), (1,))
    assert found.keys() - other.keys() == {keys.FID_INCEPTION, keys.FID_INCEPTION + keys.SE}


def test_the_real_images_pass_through_the_network_once(tmp_path, monkeypatch):
    monkeypatch.setenv("SAFEMAX_CACHE", str(tmp_path))
    data, network = tiny_models.dataset(), Colours()
    first = by_class(network, data.train, data.digest, data.class_names)
    network.weights.zero_()  # would change every feature
    again = by_class(network, data.train, data.digest, data.class_names)
    assert all(torch.equal(a.outer, b.outer) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("content", [None, b"PK\x03\x04 a pickle"], ids=["missing", "not safetensors"])
def test_weights_that_cannot_be_read_are_refused_in_one_line_that_says_how_to_make_them(tmp_path, content):
    path = tmp_path / "inception.pth"
    if content:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"inception\.pth' is not FID-Inception weights .*save_file") as caught:
        load_inception(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("weights")
def test_weights_of_another_network_are_refused(tmp_path):
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"is not FID-Inception weights .*Missing key"):
        load_inception(str(tmp_path / "other.safetensors"))


@pytest.mark.slow
@pytest.mark.skipif(
    not inception.is_at_hand() or "SAFEMAX_DATA" not in os.environ, reason="no published weights, or no data"
)
def test_with_the_published_weights_cifar10_classes_are_nearer_to_themselves_than_to_others():
    data = load("cifar10")
    network = find_inception("auto", data)
    first, second, ships = (
        Moments.of(extract(network, data.test.images[data.test.labels == k][rows]))
        for k, rows in ((0, slice(100)), (0, slice(100, 200)), (8, slice(100)))
    )
    assert frechet_distance(*first.statistics(), *second.statistics()) < frechet_distance(
        *first.statistics(), *ships.statistics()
    )
