"""Scores of disentanglement: does each code know one factor, and each factor have one code?"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ppl_vae.latents.inputs import coded, comparable, entropies, on_own_scale, random_state
from ppl_vae.options import whole_number

__all__ = ["DCI", "dci", "mig", "mutual_information", "sap"]


def mutual_information(codes: ArrayLike, factors: ArrayLike, num_bins: int = 20) -> NDArray[np.float64]:
    """Mutual information of each code, cut into bins of equal width over its range, with each factor.

    A code that is constant, or varies by rounding alone, has one bin.

    Args:
        codes: Codes, (N, d): E[z given x], say.
        factors: Known factors of the data, whole numbers (N, F).
        num_bins: Bins of each code. Counts bias the information upwards, by about bins times values / 2 N nats.

    Returns:
        Information in nats, (d, F).

    Raises:
        ValueError: `num_bins` is no whole number of at least 2.
        DataError: Shapes differ, or codes are not finite or above 1e100.

    Reference:
        Locatello et al. (2019), Challenging Common Assumptions in the Unsupervised Learning of Disentangled
        Representations, appendix C, on the bins.

    Example:
        >>> mutual_information([[0.0], [0.1], [5.0], [5.1]], [[0], [0], [1], [1]]).round(4)
        array([[0.6931]])
    """
    from sklearn.metrics import mutual_info_score

    whole_number("num_bins", num_bins, least=2)
    z, v = coded("codes", codes, factors, of=2)
    bins = [np.digitize(code, np.linspace(code.min(), code.max(), num_bins + 1)[1:-1]) for code in on_own_scale(z).T]
    return np.array([[mutual_info_score(factor, code) for factor in v.T] for code in bins]).clip(0.0)


def mig(codes: ArrayLike, factors: ArrayLike, num_bins: int = 20) -> float:
    r"""Mutual information gap: how much more the best code knows of a factor than the second best.

    $$\frac1F \sum_v \frac1{H(v)} \bigl(I(z_{(1)}; v) - I(z_{(2)}; v)\bigr)$$

    Args:
        codes: Codes, (N, d), d at least 2.
        factors: Known factors of the data, whole numbers (N, F), each of at least two values.
        num_bins: Bins of each code, as in `mutual_information`.

    Returns:
        Mean over factors, in [0, 1]: 1 where each has one code that knows it, and no other code knows anything of it.

    Raises:
        DataError: Shapes differ, codes are not finite, above 1e100 or only one, or a factor is constant.

    Reference:
        Chen et al. (2018), Isolating Sources of Disentanglement in Variational Autoencoders.

    Example:
        >>> v = np.indices((2, 3)).reshape(2, -1).T
        >>> round(mig(v.astype(float), v), 4), round(mig(np.hstack([v, v]).astype(float), v), 4)
        (1.0, 0.0)
    """
    z, v = comparable(codes, factors)
    return _mean_gap(mutual_information(z, v, num_bins) / entropies(v))


def sap(codes: ArrayLike, factors: ArrayLike, categorical: Collection[int] = ()) -> float:
    r"""Separated attribute predictability: how much better the best code predicts a factor alone than the second best.

    A factor with an order is predicted linearly and scored by

    $$R^2 = \frac{\operatorname{Cov}(z, v)^2}{\operatorname{Var} z \operatorname{Var} v},$$

    one without by thresholds, a tree with as many leaves as the factor has values, and scored by its accuracy, every
    value counting the same.

    Args:
        codes: Codes, (N, d), d at least 2.
        factors: Known factors of the data, whole numbers (N, F), each of at least two values.
        categorical: Columns of the factors without an order.

    Returns:
        Mean over factors of the gap, in [0, 1].

    Raises:
        ValueError: `categorical` names no column of the factors.
        DataError: Shapes differ, codes are not finite, above 1e100 or only one, or a factor is constant.

    Reference:
        Kumar, Sattigeri and Balakrishnan (2018), Variational Inference of Disentangled Latent Concepts from Unlabeled
        Observations, section 3.

    Example:
        >>> v = np.indices((2, 3)).reshape(2, -1).T
        >>> round(sap(v.astype(float), v), 4), round(sap(np.hstack([v, v]).astype(float), v), 4)
        (1.0, 0.0)
    """
    z, v = comparable(codes, factors)
    columns = _columns(categorical, v.shape[1])
    score = _squared_correlation(z, v)
    for column in columns:
        score[:, column] = [_balanced_accuracy(code, v[:, column]) for code in z.T]
    return _mean_gap(score)


def _columns(categorical: Collection[int], num_factors: int) -> list[int]:
    if not isinstance(categorical, Collection):
        raise ValueError(f"categorical: expected a list of columns of the factors, such as [0], found {categorical!r}")
    columns = [whole_number("categorical", column) for column in categorical]
    if wrong := [column for column in columns if column not in range(num_factors)]:
        raise ValueError(f"categorical: expected columns of the {num_factors} factors from 0, found {wrong[0]!r}")
    return columns


def _squared_correlation(z: NDArray[np.float64], v: NDArray[Any]) -> NDArray[np.float64]:
    z, v = z - z.mean(0), v - v.mean(0)
    variance = z.var(0)[:, None] * v.var(0)
    covariance = z.T @ v / len(z)
    return np.divide(np.square(covariance), variance, out=np.zeros_like(covariance), where=variance > 0)


def _balanced_accuracy(code: NDArray[np.float64], v: NDArray[Any]) -> float:
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.tree import DecisionTreeClassifier

    tree = DecisionTreeClassifier(max_leaf_nodes=len(np.unique(v)), class_weight="balanced", random_state=0)
    return float(balanced_accuracy_score(v, tree.fit(code[:, None], v).predict(code[:, None])))


class DCI(NamedTuple):
    """Disentanglement, completeness and informativeness."""

    disentanglement: float
    """Does each code matter for one factor only? In [0, 1]; codes count by how much they matter."""
    completeness: float
    """Does one code suffice for each factor? In [0, 1]; mean over factors."""
    informativeness: float
    """Accuracy of the factors predicted from all codes, mean over factors, on data not trained on."""


def dci(codes: ArrayLike, factors: ArrayLike, seed: int = 0) -> DCI:
    r"""Disentanglement, completeness and informativeness from the importance of codes in predicting factors.

    With R_uv the importance of code u in a random forest that predicts factor v (its share of the fall of impurity),

    $$D = \sum_u \rho_u \bigl(1 - H_F(R_{u\cdot} / \textstyle\sum_v R_{uv})\bigr), \quad
    \rho_u = \frac{\sum_v R_{uv}}{\sum_{uv} R_{uv}}, \quad
    C = \frac1F \sum_v \bigl(1 - H_d(R_{\cdot v} / \textstyle\sum_u R_{uv})\bigr)$$

    where the entropies H_F and H_d have the number of factors and of codes as base.

    Args:
        codes: Codes, (N, d), d at least 2.
        factors: Known factors of the data, whole numbers (N, F), F at least 2, each of at least two values.
        seed: Of the split into data to train on and to predict, half each, and of the forests.

    Raises:
        ValueError: The seed is no whole number, or negative.
        DataError: Shapes differ, codes are not finite, above 1e100 or only one, or a factor is constant.

    Reference:
        Eastwood and Williams (2018), A Framework for the Quantitative Evaluation of Disentangled Representations;
        accuracy as informativeness as in Locatello et al. (2019).

    Example:
        >>> v = np.indices((2, 3, 40)).reshape(3, -1)[:2].T
        >>> dci(v.astype(float), v)
        DCI(disentanglement=1.0, completeness=1.0, informativeness=1.0)
    """
    from sklearn.ensemble import RandomForestClassifier

    state = random_state(seed)
    z, v = comparable(codes, factors)
    train, test = np.array_split(np.random.default_rng(seed).permutation(len(z)), 2)
    importance, accuracy = [], []
    for factor in v.T:
        forest = RandomForestClassifier(20, max_features=None, min_samples_leaf=3, random_state=state)
        forest.fit(z[train], factor[train])
        importance.append(forest.feature_importances_)
        accuracy.append(forest.score(z[test], factor[test]))
    return _scores(np.array(importance).T, float(np.mean(accuracy)))


def _scores(importance: NDArray[np.float64], informativeness: float) -> DCI:
    """D and C of importances (d, F)."""
    weight = importance.sum(1) / max(importance.sum(), np.finfo(float).tiny)
    disentanglement = (weight * _concentration(importance)).sum()
    return DCI(float(disentanglement), float(_concentration(importance.T).mean()), informativeness)


def _concentration(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 - entropy of each row, the number of its entries as base; 0 for a row of zeros."""
    total = rows.sum(1, keepdims=True)
    share = np.divide(rows, total, out=np.full_like(rows, 1 / rows.shape[1]), where=total > 0)
    logs = np.log(share, out=np.zeros_like(share), where=share > 0)
    return 1 + (share * logs).sum(1) / np.log(rows.shape[1])


def _mean_gap(scores: NDArray[np.float64]) -> float:
    """Best minus second best code (d, F), mean over factors."""
    best = np.sort(scores, axis=0)
    return float((best[-1] - best[-2]).mean())
