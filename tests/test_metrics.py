"""Metrics against SciPy, NumPy and values known by hand."""

import json
import math

import numpy as np
import pytest
import scipy.linalg
import scipy.ndimage
import torch

from qvae.codes import perplexity, usage
from qvae.errors import FormatError
from qvae.metrics.classifier_features import (
    FASHION_FEATURES,
    ClassifierFeatures,
    load_fashion_features,
)
from qvae.metrics.codebook import CodebookUsage, entropy_bits
from qvae.metrics.frechet import FeatureStatistics, RandomConvFeatures, frechet_distance
from qvae.metrics.reconstruction import mse, nmse, psnr, ssim
from qvae.store import save_folder


def test_psnr_mse_and_nmse_by_hand():
    x = torch.zeros(3, 1, 2, 2)
    recon = torch.tensor([0.1, 0.5, 0.0])[:, None, None, None].expand_as(x)
    torch.testing.assert_close(mse(recon, x), torch.tensor([0.01, 0.25, 0.0]).double())
    ratio = psnr(recon, x)
    assert ratio[:2].tolist() == pytest.approx([20.0, 10 * math.log10(4)], abs=1e-5)
    assert ratio[2] == math.inf
    assert psnr(255 * recon, x, data_range=255.0)[0].item() == pytest.approx(20.0, abs=1e-5)
    data = torch.rand(50, 3, 4, 4)
    mean = data.mean().expand_as(data)
    score = nmse(mean, data, variance=data.var(correction=0).item()).mean().item()
    assert score == pytest.approx(1.0, abs=1e-5)


def direct_ssim(a, b):
    """Wang et al. 2004, eq. 13, by SciPy on one channel; the border of 5 is cut off."""

    def blur(image):
        return scipy.ndimage.gaussian_filter(image, 1.5, radius=5)[(slice(5, -5),) * image.ndim]

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    cov = blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    top = (2 * mean_a * mean_b + c1) * (2 * cov + c2)
    return (top / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean()


@pytest.mark.parametrize("size", [(40,), (16, 21), (12, 13, 11)])
def test_ssim_equals_a_direct_implementation(size):
    rng = np.random.default_rng(0)
    x = rng.random((2, 3, *size))
    recon = np.clip(x + 0.2 * rng.normal(size=x.shape), 0, 1)
    pairs = zip(recon, x, strict=True)
    expected = [np.mean([direct_ssim(*pair) for pair in zip(*two, strict=True)]) for two in pairs]
    got = ssim(torch.from_numpy(recon), torch.from_numpy(x))
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-9)


def test_ssim_is_symmetric_one_on_equal_and_falls_with_noise():
    x = torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    assert ssim(x, x).tolist() == [1.0] * 4
    scores = [ssim(x + s * noise, x).mean().item() for s in (0.05, 0.2, 0.8)]
    assert scores == sorted(scores, reverse=True) and scores[0] > 0.9 and scores[2] < 0.6
    torch.testing.assert_close(ssim(x, x + noise), ssim(x + noise, x))
    inverted = ssim(1 - x, x)
    assert inverted.max() < 0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: mse(torch.zeros(2, 1, 4), torch.zeros(2, 1, 5)), ["(2, 1, 4)", "(2, 1, 5)"]),
        (
            lambda: psnr(torch.zeros(2, 1, 4), torch.zeros(2, 1, 4), data_range=0.0),
            ["data_range=0.0"],
        ),
        (lambda: nmse(torch.zeros(2, 1, 4), torch.zeros(2, 1, 4), variance=0.0), ["variance=0.0"]),
        (lambda: ssim(torch.zeros(2, 1, 8, 20), torch.zeros(2, 1, 8, 20)), ["(8, 20)", "11"]),
        (lambda: ssim(torch.zeros(1, 1, 9), torch.zeros(1, 1, 9), window=4), ["window=4"]),
        (lambda: CodebookUsage(()), ["codebook_sizes=()"]),
        (lambda: CodebookUsage((4, 0)), ["codebook_sizes=(4, 0)"]),
        (lambda: CodebookUsage((4,)).update(torch.tensor([[4]])), ["code 4", "0..3"]),
        (lambda: CodebookUsage((4,)).update(torch.tensor([[-1]])), ["code -1"]),
        (lambda: CodebookUsage((4,)).update(torch.zeros(2, 2, dtype=torch.long)), ["2 columns"]),
        (lambda: RandomConvFeatures(0), ["channels=0"]),
        (lambda: RandomConvFeatures(1, num_axes=4), ["num_axes=4"]),
        (lambda: RandomConvFeatures(1)(torch.zeros(1, 1, 7, 8)), ["(1, 1, 7, 8)"]),
        (lambda: RandomConvFeatures(1)(torch.zeros(1, 3, 8, 8)), ["(1, 3, 8, 8)"]),
        (lambda: FeatureStatistics(0), ["dim=0"]),
        (lambda: FeatureStatistics(2).covariance, ["0 samples"]),
        (lambda: FeatureStatistics(2).update(torch.zeros(1, 3)), ["3 columns"]),
        (lambda: FeatureStatistics(1).update(torch.tensor([[math.nan]])), ["NaN"]),
        (lambda: frechet_distance(FeatureStatistics(2), FeatureStatistics(3)), ["2 and 3"]),
    ],
)
def test_bad_arguments_are_named(call, words):
    with pytest.raises(ValueError) as caught:
        call()
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_counts_by_hand():
    even, one, none = torch.tensor([4, 4, 4, 4]), torch.tensor([0, 9, 0]), torch.zeros(3).long()
    for counts, expected in [(even, (1, 4, 2)), (one, (1 / 3, 1, 0)), (none, (0, 1, 0))]:
        found = usage(counts).item(), perplexity(counts).item(), entropy_bits(counts)
        assert found == pytest.approx(expected)


def test_entropy_is_that_of_torch():
    counts = torch.randint(0, 50, (100,))
    expected = torch.distributions.Categorical(counts.double()).entropy() / math.log(2)
    assert entropy_bits(counts) == pytest.approx(expected.item())


@pytest.mark.parametrize("grid", [(), (5,), (2, 3)])
def test_streaming_equals_counting_at_once(grid):
    codes = torch.stack([torch.randint(0, 4, (30, *grid)), torch.randint(0, 9, (30, *grid))], -1)
    whole, parts = CodebookUsage((6, 9)), CodebookUsage((6, 9))
    whole.update(codes)
    for part in (codes[:7], codes[7:7], codes[7:].int()):
        parts.update(part)
    assert parts.result() == whole.result()
    result = whole.result()
    assert whole.counts[0].equal(torch.bincount(codes[..., 0].flatten(), minlength=6))
    assert result["num_codes"] == 30 * math.prod(grid)
    assert result["max_bits"] == pytest.approx(math.log2(6) + math.log2(9))
    assert result["usage_by_codebook"][0] == pytest.approx(4 / 6)
    assert 0 < result["entropy_bits"] <= result["max_bits"]


def test_a_refused_batch_counts_nothing():
    counter = CodebookUsage((4, 2))
    with pytest.raises(ValueError):
        counter.update(torch.tensor([[1, 1], [3, 2]]))
    assert counter.result()["num_codes"] == 0


def gather(features):
    statistics = FeatureStatistics(features.shape[1])
    statistics.update(features)
    return statistics


def test_statistics_in_batches_equal_numpy():
    features = 1e4 + torch.randn(70, 5)
    statistics = FeatureStatistics(5)
    for part in (features[:1], features[1:33], features[33:33], features[33:]):
        statistics.update(part)
    array = features.double().numpy()
    np.testing.assert_allclose(statistics.mean.numpy(), array.mean(0), rtol=1e-12)
    np.testing.assert_allclose(statistics.covariance.numpy(), np.cov(array.T), rtol=1e-7)


def test_frechet_equals_scipy_sqrtm():
    mix = torch.randn(8, 8)
    a, b = gather(torch.randn(200, 8)), gather(torch.randn(150, 8) @ mix + 0.3)
    cov_a, cov_b = a.covariance.numpy(), b.covariance.numpy()
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    shift = (a.mean - b.mean).numpy()
    expected = shift @ shift + np.trace(cov_a + cov_b - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)


def test_frechet_of_shifted_and_scaled_gaussians_and_of_few_samples():
    features = torch.randn(500, 6).double()
    a = gather(features)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, gather(features + 2)) == pytest.approx(6 * 4, rel=1e-9)
    scaled = gather((features - a.mean) * 3 + a.mean)
    assert frechet_distance(a, scaled) == pytest.approx(4 * a.covariance.trace().item(), rel=1e-9)
    few, same = gather(features[:3]), gather(features[:3].clone())  # singular covariances
    assert frechet_distance(few, same) == pytest.approx(0, abs=1e-6)
    assert math.isfinite(frechet_distance(few, gather(features[3:6])))


@pytest.mark.parametrize(
    ("channels", "size"), [(1, (9,)), (3, (8, 8)), (4, (32, 17)), (1, (8,) * 3)]
)
def test_random_features_take_any_data_and_ignore_the_generator(channels, size):
    torch.manual_seed(1)
    first = RandomConvFeatures(channels, num_axes=len(size))
    torch.manual_seed(2)
    second = RandomConvFeatures(channels, num_axes=len(size))
    x = torch.rand(3, channels, *size)
    assert first(x).equal(second(x)) and first(x).shape == (3, first.dim)
    assert not list(first.parameters())
    torch.testing.assert_close(first(x)[1:2], first(x[1:2]))


def test_random_features_are_the_same_on_every_machine():
    network = RandomConvFeatures(3)
    weights = network.get_buffer("weight_0").flatten()[:4].tolist()
    assert weights == pytest.approx(GOLDEN_WEIGHTS, abs=1e-7)
    ramp = torch.linspace(0, 1, 3 * 16 * 16).view(1, 3, 16, 16)
    assert network(ramp)[0, [0, 1, 32, 33]].tolist() == pytest.approx(GOLDEN_FEATURES, abs=1e-4)


GOLDEN_WEIGHTS = [0.24061112, -0.04728751, -0.27992454, 0.44421473]
GOLDEN_FEATURES = [0.1291, 0.335474, 0.105865, 0.230369]


def test_random_features_see_more_noise_as_farther():
    generator = torch.Generator().manual_seed(0)
    network = RandomConvFeatures(3)

    colours = torch.rand(256, 3, 1, 1, generator=generator)
    ramp = torch.linspace(-0.3, 0.3, 32).expand(256, 3, 32, 32)

    def pictures(noise):
        x = colours + ramp + noise * torch.randn(256, 3, 32, 32, generator=generator)
        return gather(network(x.clamp(0, 1)))

    real = pictures(0.0)
    distances = [frechet_distance(real, pictures(noise)) for noise in (0.02, 0.05, 0.1, 0.3)]
    assert distances == sorted(distances) and distances[-1] > 10 * distances[0] > 0
    assert frechet_distance(real, pictures(0.0)) == pytest.approx(0, abs=1e-6)


# -- features of a classifier ------------------------------------------------------------------


def test_classifier_features_load_as_they_were_saved(tmp_path):
    network = ClassifierFeatures(classes=10)
    weights = {name: tensor.half() for name, tensor in network.state_dict().items()}
    assert sum(tensor.numel() for tensor in weights.values()) * 2 < 200_000
    facts = {"name": ClassifierFeatures.name, "classes": 10}
    save_folder(tmp_path / "f", weights, facts)
    loaded = load_fashion_features(tmp_path / "f")
    network.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    x = torch.rand(4, 1, 28, 28)
    assert torch.equal(loaded(x), network(x)) and not loaded(x).requires_grad
    expected = -network.logits(x).log_softmax(1)[torch.arange(4), torch.arange(4)]
    torch.testing.assert_close(network.loss(x, torch.arange(4.0)), expected)


def test_the_features_that_ship_are_those_of_a_classifier():
    facts = json.loads((FASHION_FEATURES / "config.json").read_text())
    assert facts["test_accuracy"] > 0.9 and facts["command"].startswith("python benchmarks/")
    assert sum(file.stat().st_size for file in FASHION_FEATURES.iterdir()) < 200_000
    bag, sandal = torch.zeros(2, 1, 28, 28)
    bag[:, 8:26, 3:25] = sandal[:, 16:22, 1:27] = 0.7  # a block, and a low sole
    found = load_fashion_features().logits(torch.stack([bag, sandal])).argmax(1)
    assert found.tolist() == [8, 5]


def test_classifier_features_refuse_other_data_and_other_folders(tmp_path):
    with pytest.raises(ValueError, match="fashion-cnn-64 takes .B, 1, 28, 28."):
        ClassifierFeatures(classes=2)(torch.zeros(1, 3, 28, 28))
    save_folder(tmp_path / "f", {"a": torch.zeros(1)}, {"name": "other"})
    with pytest.raises(FormatError, match="name='other', needs 'fashion-cnn-64'"):
        load_fashion_features(tmp_path / "f")
