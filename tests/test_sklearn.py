"""The transformer: scikit-learn's own checks, all of them, and what they do not look at."""

import copy
import math
import pickle

import numpy as np
import pytest
from sklearn.datasets import load_digits, load_iris
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from qvae.sklearn import Autoencoder


@parametrize_with_checks([Autoencoder(steps=3)])
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks([Autoencoder(), Autoencoder(bottleneck="identity")])
def test_scikit_learns_own_checks_with_the_defaults(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def iris():
    return load_iris().data


@pytest.fixture(scope="module")
def fitted(iris):
    return Autoencoder(n_components=2, bottleneck="identity", steps=400, random_state=0).fit(iris)


def test_two_numbers_tell_iris_at_least_as_well_as_two_principal_axes(iris, fitted):
    recon = fitted.inverse_transform(fitted.transform(iris))
    error = np.square((recon - iris) / iris.std(axis=0)).mean()
    pca = make_pipeline(StandardScaler(), PCA(2)).fit(iris)
    linear = np.square((pca.inverse_transform(pca.transform(iris)) - iris) / iris.std(axis=0))
    assert error < 1.1 * linear.mean()


def test_a_vae_keeps_what_matters_of_digits():
    x = load_digits().data
    model = Autoencoder(n_components=8, steps=300, random_state=0).fit(x)
    recon = model.inverse_transform(model.transform(x))
    assert np.square(recon - x).mean() < 0.6 * x.var(axis=0).mean()
    assert model.n_steps_ == 300


def test_a_pickle_holds_safetensors_and_comes_back_the_same(iris, fitted):
    data = pickle.dumps(fitted)
    assert b"torch" not in data, "no tensor of torch is pickled"
    again = pickle.loads(data)
    assert np.array_equal(again.transform(iris), fitted.transform(iris))
    assert np.array_equal(copy.deepcopy(fitted).transform(iris), fitted.transform(iris))
    assert pickle.loads(pickle.dumps(Autoencoder(steps=7))).steps == 7


def test_the_same_seed_gives_the_same_codes_and_another_others(iris):
    codes = [Autoencoder(steps=20, random_state=s).fit_transform(iris) for s in (1, 1, 2)]
    assert np.array_equal(codes[0], codes[1]) and not np.allclose(codes[0], codes[2])


def test_fitting_leaves_the_callers_random_numbers_alone(iris):
    import torch

    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    Autoencoder(steps=5, random_state=0).fit(iris)
    assert torch.equal(torch.rand(2), expected)


def test_warm_start_goes_on_and_pieces_add_up(iris):
    model = Autoencoder(steps=30, warm_start=True, random_state=0).fit(iris)
    first = model.loss_
    model.fit(iris)
    assert model.n_steps_ == 60 and model.loss_ < first
    pieces = Autoencoder(batch_size=25, random_state=0)
    for _ in range(10):
        pieces.partial_fit(iris[::2]).partial_fit(iris[1::2])
    recon = pieces.inverse_transform(pieces.transform(iris))
    assert np.square(recon - iris).mean() < 0.5 * iris.var(axis=0).mean()
    assert pieces.n_steps_ == 60


def test_names_of_the_codes(fitted):
    assert fitted.get_feature_names_out().tolist() == ["autoencoder0", "autoencoder1"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"n_components": 0}, "n_components=0: must be a whole number >= 1, or None"),
        ({"n_components": 2.5}, "n_components=2.5: must be a whole number >= 1, or None"),
        ({"n_components": True}, "n_components=True: must be a whole number"),
        ({"n_components": "3"}, "n_components='3': must be a whole number"),
        ({"hidden": -2}, "hidden=-2: must be a whole number"),
        ({"hidden": 8.7}, "hidden=8.7: must be a whole number"),
        ({"bottleneck": "vq"}, "bottleneck='vq': must be gaussian or identity"),
        ({"steps": 0}, "steps=0: must be a whole number >= 1"),
        ({"batch_size": "64"}, "batch_size='64': must be a whole number >= 1"),
        ({"batch_size": None}, "batch_size=None: must be a whole number >= 1"),
        ({"lr": 0.0}, "lr=0.0: must be finite and > 0"),
        ({"lr": "fast"}, "lr='fast': must be finite and > 0"),
        ({"beta": -1.0}, "beta=-1.0: must be finite and >= 0"),
        ({"beta": math.nan}, "beta=nan: must be finite and >= 0"),
        ({"beta": math.inf}, "beta=inf: must be finite and >= 0"),
        ({"beta": 4.0, "bottleneck": "identity"}, "beta=4.0: goes with bottleneck='gaussian'"),
        ({"beta": "4"}, "beta='4': must be finite and >= 0"),
    ],
)
def test_bad_arguments_are_named(iris, arguments, sentence):
    for how in ("fit", "partial_fit"):
        with pytest.raises(ValueError, match=sentence):
            getattr(Autoencoder(**arguments), how)(iris)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"n_components": 3}, "n_components=3: the model that training goes on from has 2"),
        ({"hidden": 9}, "hidden=9: the model that training goes on from has 16"),
        ({"bottleneck": "identity"}, "bottleneck='identity': .* has 'gaussian'"),
        ({"beta": 4.0}, "beta=4.0: .* has 1.0"),
    ],
)
def test_what_goes_on_keeps_its_shape(iris, change, sentence):
    """A model cannot change its shape half way; to go on regardless is no answer."""
    model = Autoencoder(steps=2, warm_start=True, random_state=0).fit(iris)
    model.set_params(n_components=2, hidden=np.int64(16), beta=1)  # the defaults, written out
    assert model.fit(iris).n_steps_ == 4
    model = pickle.loads(pickle.dumps(model)).set_params(**change)
    for how in (model.fit, model.partial_fit):
        with pytest.raises(ValueError, match=sentence):
            how(iris)
    assert model.n_steps_ == 4 and model.transform(iris).shape == (150, 2)
    assert model.set_params(warm_start=False).fit(iris).n_steps_ == 2


def test_bad_tables_are_named(iris, fitted):
    with pytest.raises(ValueError, match="every column is constant"):
        Autoencoder().fit(np.ones((5, 3)))
    with pytest.raises(ValueError, match="NaN"):
        Autoencoder().fit(np.where(iris == iris[0, 0], np.nan, iris))
    with pytest.raises(ValueError, match="X has 3 columns: codes have 2"):
        fitted.inverse_transform(iris[:, :3])
