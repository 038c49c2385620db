"""Disentanglement metrics: truth scores 1, noise scores at the floor, and each equals a direct
transcription of its published definition in NumPy, SciPy and scikit-learn."""

import numpy as np
import pytest
import scipy.stats
from sklearn.linear_model import LinearRegression
from sklearn.metrics import mutual_info_score
from sklearn.svm import LinearSVC

from qvae.metrics.disentanglement import (
    beta_vae_score,
    dci,
    factor_vae_score,
    irs,
    mig,
    mig_posterior,
    sap,
)
from qvae.metrics.disentanglement.beta_vae import difference_points
from qvae.metrics.disentanglement.dci import scores_of_importance
from qvae.metrics.disentanglement.lattice import checked_codes, fixed_rows
from qvae.metrics.disentanglement.mig import binned, information

SIZES = (3, 4, 5)
NUM = 60
SMALL = {"num_train": 600, "num_test": 300}


def classes_of(rows):
    return np.stack(np.unravel_index(rows, SIZES), axis=1)


def truth(rows):
    """The factors themselves, one coordinate each, and a coordinate that never moves."""
    return np.hstack([classes_of(rows).astype(float), np.zeros((len(rows), 1))])


TABLE = np.random.default_rng(7).standard_normal((NUM, 4))


def noise(rows):
    """Coordinates that are independent of the factors: new draws each time they are asked for."""
    return noise.rng.standard_normal((len(rows), 4))


noise.rng = np.random.default_rng(3)


def turned(rows):
    """Two of the factors mixed by 30 degrees: all is known, two coordinates know two things."""
    mix = np.eye(3)
    mix[1:, 1:] = [[np.cos(np.pi / 6), -np.sin(np.pi / 6)], [np.sin(np.pi / 6), np.cos(np.pi / 6)]]
    return (classes_of(rows) / np.std(classes_of(np.arange(NUM)), axis=0)) @ mix


@pytest.fixture
def sample():
    rows = np.random.default_rng(0).integers(0, NUM, 1500)
    return rows, classes_of(rows)


# -- oracles -----------------------------------------------------------------------------------


@pytest.mark.parametrize("classifier", ["logistic", "adagrad"])
def test_beta_vae_score_of_truth_and_noise(classifier):
    options = {"classifier": classifier, "num_pairs": 16, "steps": 1500, **SMALL}
    assert beta_vae_score(truth, SIZES, **options) == 1.0
    assert abs(beta_vae_score(noise, SIZES, **options) - 1 / 3) < 0.1


def test_factor_vae_score_of_truth_and_noise():
    assert factor_vae_score(truth, SIZES, **SMALL) == 1.0
    assert abs(factor_vae_score(noise, SIZES, **SMALL) - 1 / 3) < 0.1
    assert factor_vae_score(lambda rows: np.zeros((len(rows), 2)), SIZES, **SMALL) == 0.0


def test_scores_on_tables_of_truth_and_noise(sample):
    rows, classes = sample
    good, bad = truth(rows), noise(rows)
    assert mig(good, classes) == pytest.approx(1, abs=0.01)
    assert sap(good, classes) == pytest.approx(1, abs=0.01)
    assert 0.1 < sap(good, classes, scale="accuracy") < 0.7, "it does not reach 1"
    assert irs(good, classes) == 1.0
    for predictor in ("forest", "lasso"):
        found = dci(good[:400], classes[:400], predictor=predictor)
        assert min(found.disentanglement, found.completeness) > 0.9, predictor
        assert found.informativeness > 0.99
    assert mig(bad, classes) < 0.02 and sap(bad, classes) < 0.01
    assert abs(sap(bad, classes, scale="accuracy")) < 0.06
    assert dci(bad[:400], classes[:400]).disentanglement < 0.02
    assert irs(bad, classes) < 0.35


def test_a_rotation_leaves_the_linear_probe_and_ruins_the_axes(sample):
    """The trap: two of the metrics saturate where the others see that axes are mixed."""
    rows, classes = sample
    assert beta_vae_score(turned, SIZES, num_pairs=64, **SMALL) > 0.99
    assert factor_vae_score(turned, SIZES, **SMALL) > 0.99
    assert mig(turned(rows), classes) < 0.7
    assert sap(turned(rows), classes) < 0.7
    assert dci(turned(rows)[:400], classes[:400], predictor="lasso").disentanglement < 0.8


def test_boosting_is_a_predictor_too(sample):
    rows, classes = sample
    found = dci(truth(rows)[:120], classes[:120], predictor="boosting")
    assert found.disentanglement > 0.99 and found.informativeness > 0.99


def test_discrete_codes_are_names():
    """A code whose numbers are shuffled names of one factor is perfect, whatever the numbers."""
    names = np.array([3, 0, 2, 4, 1])

    def shuffled(rows):
        found = classes_of(rows)
        return np.stack([found[:, 2], names[found[:, 2]] * 7, found[:, 0]], axis=1)

    rows = np.random.default_rng(0).integers(0, NUM, 1500)
    classes = classes_of(rows)[:, [0, 2]]
    codes = shuffled(rows)[:, 1:].astype(float)
    assert mig(codes, classes, is_discrete=True) == pytest.approx(1, abs=0.01)
    assert mig(codes, classes, num_bins=2) < 0.8
    best = sap(codes, classes, scale="accuracy", is_discrete=True)
    # The other coordinate can only guess: one in three and one in five.
    assert best == pytest.approx(((1 - 1 / 3) + (1 - 1 / 5)) / 2, abs=0.06)
    own = classes_of(np.arange(NUM))[:, 2]
    score = factor_vae_score(
        lambda rows: np.stack([names[own[rows]], classes_of(rows)[:, 0]], 1).astype(float),
        SIZES,
        is_discrete=True,
        **SMALL,
    )
    assert score == pytest.approx(2 / 3, abs=0.08), "two of three factors have a coordinate"


# -- transcriptions of the definitions ---------------------------------------------------------


def test_held_factor_is_shared_within_a_group_and_nothing_else():
    rng = np.random.default_rng(0)
    held = np.array([0, 1, 2, 2])
    rows = fixed_rows(SIZES, held, 500, rng)
    for factor, group in zip(held, rows, strict=True):
        found = classes_of(group)
        sizes = [len(np.unique(column)) for column in found.T]
        assert sizes[factor] == 1
        assert [s for k, s in enumerate(sizes) if k != factor] == [
            s for k, s in enumerate(SIZES) if k != factor
        ]


def test_difference_points_have_the_expected_differences():
    """The held factor differs by 0; a free one of n values by (n^2 - 1) / (3 n) on average."""
    rng = np.random.default_rng(0)
    points, labels = difference_points(truth, SIZES, np.arange(3), 3000, 32, rng)
    for k, size in enumerate(SIZES):
        assert np.all(points[labels == k, k] == 0)
        free = points[labels != k, k].mean()
        assert free == pytest.approx((size**2 - 1) / (3 * size), abs=0.02)
    assert np.bincount(labels).min() > 900


def test_information_equals_scikit_learns(sample):
    rows, classes = sample
    codes = turned(rows)
    bins = binned(codes, 20)
    expected = [[mutual_info_score(bins[:, d], classes[:, k]) for k in range(3)] for d in range(3)]
    np.testing.assert_allclose(information(bins, classes), expected, atol=1e-12)
    for d in range(3):
        edges = np.histogram(codes[:, d], 20)[1][:-1]
        same = np.digitize(codes[:, d], edges) - 1 == bins[:, d]
        assert same.mean() > 0.999  # a value on an edge may be rounded to either side


def test_mig_is_its_definition(sample):
    rows, classes = sample
    codes = turned(rows)
    found = information(binned(codes, 20), classes)
    gaps = []
    for k in range(3):
        top = np.sort(found[:, k])
        gaps.append((top[-1] - top[-2]) / scipy.stats.entropy(np.bincount(classes[:, k])))
    assert mig(codes, classes) == pytest.approx(np.mean(gaps), abs=1e-12)


def test_mig_posterior_agrees_with_quadrature():
    """One coordinate, four posteriors, one factor: both entropies by integration."""
    mean, std = np.array([-1.0, 0.5, 1.0, 4.0]), np.array([0.5, 0.8, 0.3, 1.0])
    classes = np.array([0, 0, 1, 1])[:, None]
    z = np.linspace(-8, 12, 40_001)
    each = scipy.stats.norm.pdf(z[:, None], mean, std)

    def entropy(members):
        density = each[:, members].mean(axis=1)
        return -np.trapezoid(density * np.log(density + 1e-300), z)

    exact = (entropy([0, 1, 2, 3]) - 0.5 * (entropy([0, 1]) + entropy([2, 3]))) / np.log(2)
    found = mig_posterior(
        mean[:, None], 2 * np.log(std)[:, None], classes, num_samples=20_000, seed=1
    )
    assert found == pytest.approx(exact, abs=0.01)


def test_sap_is_its_definition(sample):
    rows, classes = sample
    codes = turned(rows)
    r2 = np.array(
        [
            [
                LinearRegression()
                .fit(codes[:, [d]], classes[:, k])
                .score(codes[:, [d]], classes[:, k])
                for k in range(3)
            ]
            for d in range(3)
        ]
    )
    top = np.sort(r2, axis=0)
    assert sap(codes, classes) == pytest.approx((top[-1] - top[-2]).mean(), abs=1e-9)
    accuracy = np.zeros((3, 3))
    for d, k in np.ndindex(3, 3):
        model = LinearSVC(C=0.01, class_weight="balanced", random_state=0)
        model.fit(codes[:1000, [d]], classes[:1000, k])
        accuracy[d, k] = model.score(codes[1000:, [d]], classes[1000:, k])
    top = np.sort(accuracy, axis=0)
    expected = (top[-1] - top[-2]).mean()
    assert sap(codes, classes, scale="accuracy") == pytest.approx(expected, abs=1e-12)


def test_dci_is_its_definition():
    importance = np.random.default_rng(0).random((5, 3)) ** 2
    importance[4] = 0
    per_code = 1 - scipy.stats.entropy(importance[:4].T, base=3)
    weights = importance[:4].sum(1) / importance.sum()
    per_factor = 1 - scipy.stats.entropy(importance, base=5)
    share = importance.sum(0) / importance.sum()
    found = scores_of_importance(importance)
    np.testing.assert_allclose(found, [per_code @ weights, per_factor @ share], atol=1e-12)


def test_irs_is_its_definition(sample):
    rows, classes = sample
    codes = np.hstack([turned(rows), np.ones((len(rows), 1))])
    scores, weights = [], []
    for d in range(3):
        reach = np.max(np.abs(codes[:, d] - codes[:, d].mean()))
        best = -np.inf
        for k in range(3):
            away = []
            for value in range(SIZES[k]):
                z = codes[classes[:, k] == value, d]
                away.append(np.percentile(np.abs(z - z.mean()), 99))
            best = max(best, 1 - np.mean(away) / reach)
        scores.append(best)
        weights.append(reach)
    assert irs(codes, classes) == pytest.approx(np.average(scores, weights=weights), abs=1e-12)


def test_factor_vae_score_is_its_definition():
    """The same votes by loops and by arrays: the shares agree within the noise of the draws."""
    rng = np.random.default_rng(5)
    everything = turned(rng.integers(0, NUM, 5000)).var(axis=0, ddof=1)

    def votes(num):
        table = np.zeros((3, 3), dtype=int)
        for _ in range(num):
            held = rng.integers(3)
            group = np.stack([rng.integers(0, size, 16) for size in SIZES], axis=1)
            group[:, held] = group[0, held]
            rows = np.ravel_multi_index(tuple(group.T), SIZES)
            table[(turned(rows).var(axis=0, ddof=1) / everything).argmin(), held] += 1
        return table

    best = votes(1000).argmax(axis=1)
    table = votes(1000)
    expected = table[np.arange(3), best].sum() / table.sum()
    found = factor_vae_score(turned, SIZES, group_size=16, num_train=2000, num_test=2000)
    assert found == pytest.approx(expected, abs=0.05)


# -- bad input ---------------------------------------------------------------------------------

FEW = classes_of(np.arange(NUM))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: mig(np.full((NUM, 2), np.nan), FEW), "holds NaN or Inf"),
        (lambda: mig(np.zeros((NUM, 0)), FEW), "N and D at least 1"),
        (lambda: checked_codes(np.zeros((3, 2)), FEW), r"classes of shape \(60, 3\)"),
        (lambda: irs(TABLE, FEW * 0), "factor 0 is constant"),
        (lambda: mig(TABLE, FEW, num_bins=1), "num_bins=1: must be at least 2"),
        (lambda: sap(TABLE, FEW, scale="kumar"), "must be r2 or accuracy"),
        (lambda: sap(TABLE, FEW, is_discrete=True), "have no correlation; use accuracy"),
        (lambda: sap(TABLE, FEW, test_share=1.0), "test_share=1.0"),
        (lambda: dci(TABLE, FEW, predictor="svm"), "must be boosting, forest or lasso"),
        (lambda: irs(TABLE, FEW, quantile=0.0), "quantile=0.0"),
        (lambda: beta_vae_score(truth, SIZES, num_pairs=1), "num_pairs=1: must be at least 2"),
        (lambda: beta_vae_score(truth, SIZES, factors=[1]), "needs two or more of 0..2"),
        (lambda: beta_vae_score(truth, SIZES, classifier="svm"), "must be logistic or adagrad"),
        (lambda: factor_vae_score(truth, SIZES, group_size=1), "group_size=1"),
    ],
)
def test_bad_input_is_named(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def test_scikit_learn_missing_is_said_with_the_remedy(monkeypatch):
    import builtins

    from qvae.errors import UsageError

    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == "sklearn":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=r"pip install 'qvae\[sklearn\]'"):
        dci(TABLE, FEW)
