"""The network of the standard FID, with random weights: against torch-fidelity's where that is installed, and in the panel."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance

from safemax import metric_keys as keys
from safemax.data.sources import load
from safemax.errors import InputError
from safemax.evaluation.measure import measure
from safemax.evaluation.metric_info import meaning
from safemax.evaluation.samples import Samples
from safemax.judges import inception
from safemax.judges.inception import Inception, by_class, extract, load_inception
from safemax.judges.load import JudgeConfig, judges, reference
from safemax.metrics.frechet import distance_to
from tests.support import tiny_models


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """Weights whose activations keep their size through all layers, so that no layer is lost in the comparison."""
    path = tmp_path_factory.mktemp("inception") / "inception.safetensors"
    torch.manual_seed(0)
    network = Inception()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.BatchNorm2d):
            module.get_buffer("running_mean").normal_(0, 0.1)
            module.get_buffer("running_var").uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    head = {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    counts = {
        name for name in network.state_dict() if name.endswith("num_batches_tracked")
    }  # published files lack them
    save_file({name: t for name, t in network.state_dict().items() if name not in counts} | head, path)
    return path


@pytest.fixture
def small_frames(monkeypatch):
    """Look at images of 75 pixels, the least that the network takes, a sixteenth of the work."""
    monkeypatch.setattr(inception, "SIDE", 75)


def pictures(n: int, channels: int = 3, size: int = 32) -> torch.Tensor:
    shape = (n, channels, size, size)
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(n)).to(torch.uint8)


def test_features_are_those_of_torch_fidelitys_network(weights, tmp_path):
    theirs = pytest.importorskip("torch_fidelity", reason="torch-fidelity is not installed: pip install '.[inception]'")
    torch.save(load_file(weights), tmp_path / "w.pth")
    network = theirs.FeatureExtractorInceptionV3("it", ["2048"], feature_extractor_weights_path=str(tmp_path / "w.pth"))
    images = pictures(3)
    torch.testing.assert_close(load_inception(str(weights))(images), network(images)[0], rtol=1e-4, atol=1e-4)


def test_the_resize_takes_pixel_i_from_i_times_the_ratio():
    # 2 pixels 0 and 299 to 299: pixel i lies at 2 i / 299, so it is 2 i up to pixel 149 and the last pixel beyond
    row = inception._resized(torch.tensor([[[[0.0, 299.0]]]]))[0, 0, 0]
    expected = torch.tensor([min(2.0 * i, 299.0) for i in range(299)])
    torch.testing.assert_close(row, expected, rtol=0, atol=1e-3)


@pytest.mark.usefixtures("small_frames")
def test_a_grey_image_is_seen_as_its_colour_copy_and_batches_do_not_matter(weights):
    network, grey = load_inception(str(weights)), pictures(5, channels=1, size=8)
    together = extract(network, grey.expand(-1, 3, -1, -1))
    assert together.shape == (5, 2048)
    torch.testing.assert_close(extract(network, grey, batch_size=2), together, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("small_frames")
def test_the_distance_in_its_features_is_torchmetrics_fid(weights):
    network = load_inception(str(weights))

    class Cut(nn.Module):
        num_features = 16  # of 2,048: torchmetrics takes the eigenvalues of an unsymmetric matrix of their size

        def forward(self, images):
            return network(images)[:, :16]

    real, drawn = pictures(40), pictures(30) // 2
    fid = FrechetInceptionDistance(feature=Cut(), input_img_size=(3, 32, 32)).set_dtype(torch.float64)
    fid.update(real, real=True)
    fid.update(drawn, real=False)
    ours = distance_to(extract(network, real)[:, :16])(extract(network, drawn)[:, :16])
    assert ours == pytest.approx(fid.compute().item(), rel=1e-4)


@pytest.mark.usefixtures("small_frames")
def test_weights_by_path_add_the_standard_fid_against_all_real_images_of_the_retained_classes(
    weights, tmp_path, monkeypatch
):
    monkeypatch.setenv("SAFEMAX_CACHE", str(tmp_path))
    data = tiny_models.dataset()
    jury = judges(data, JudgeConfig(judge_steps=1, reject_judges=1, inception=str(weights)), progress=False)
    real = reference(data, jury)
    assert [len(each) for each in real.inception] == [20, 20, 20]
    samples = Samples(data.test.images, data.test.labels, data.test.images, data.test.labels)
    found = measure(samples, jury, real, (1,))
    kept, drawn = (each.images[each.labels != 1] for each in (data.train, data.test))
    expected = distance_to(extract(jury.inception, kept))(extract(jury.inception, drawn))
    assert found[keys.FID_INCEPTION] == pytest.approx(expected, rel=1e-6)
    assert found[keys.FID_INCEPTION + keys.SE] > 0
    assert meaning(keys.FID_INCEPTION + keys.DELTA).better == "lower"
    without = measure(samples, replace(jury, inception=None), replace(real, inception=()), (1,))
    assert found.keys() - without.keys() == {keys.FID_INCEPTION, keys.FID_INCEPTION + keys.SE}


@pytest.mark.usefixtures("small_frames")
def test_the_real_images_pass_through_the_network_once(weights, tmp_path, monkeypatch):
    monkeypatch.setenv("SAFEMAX_CACHE", str(tmp_path))
    data, network = tiny_models.dataset(), load_inception(str(weights))
    first = by_class(network, data.train, data.digest, data.class_names)
    network.Conv2d_1a_3x3.conv.weight.data.zero_()  # would change every feature
    again = by_class(network, data.train, data.digest, data.class_names)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("content", [None, b"PK\x03\x04 a pickle"], ids=["missing", "not safetensors"])
def test_weights_that_cannot_be_read_are_refused_in_one_line_that_says_how_to_make_them(tmp_path, content):
    path = tmp_path / "inception.pth"
    if content:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"inception\.pth' is not FID-Inception weights .*save_file") as caught:
        load_inception(str(path))
    assert "\n" not in str(caught.value)


def test_weights_of_another_network_are_refused(tmp_path):
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"is another network: missing keys \['Conv2d_1a"):
        load_inception(str(tmp_path / "other.safetensors"))


@pytest.mark.slow
def test_with_the_published_weights_cifar10_classes_are_nearer_to_themselves_than_to_others(tmp_path, monkeypatch):
    path = os.environ.get("SAFEMAX_INCEPTION")
    if not path or "SAFEMAX_DATA" not in os.environ:
        pytest.skip("SAFEMAX_INCEPTION names no FID-Inception weights, or SAFEMAX_DATA no CIFAR-10")
    test, network = load("cifar10").test, load_inception(path)
    first, second, ships = (
        extract(network, test.images[test.labels == k][rows])
        for k, rows in ((0, slice(100)), (0, slice(100, 200)), (8, slice(100)))
    )
    assert distance_to(first)(second) < distance_to(first)(ships)
