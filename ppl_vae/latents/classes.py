"""How well codes tell classes apart: linear probe, nearest neighbours, clusters."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ppl_vae.errors import DataError
from ppl_vae.latents.inputs import coded, random_state
from ppl_vae.options import whole_number

__all__ = ["ClusterAgreement", "cluster_agreement", "linear_probe", "neighbour_accuracy"]


def linear_probe(codes: ArrayLike, labels: ArrayLike, test_codes: ArrayLike, test_labels: ArrayLike) -> float:
    r"""Accuracy of multinomial logistic regression on codes.

    $$\min_{W, b}\ \tfrac12 |W|^2 - \sum_n \log \operatorname{softmax}(W z_n + b)_{y_n}$$

    with each code scaled to mean 0 and variance 1 over the data to train on.

    Args:
        codes: Codes to train on, (N, d).
        labels: Their classes, integers (N,).
        test_codes: Codes of other data, (M, d).
        test_labels: Their classes, (M,).

    Returns:
        Share of the other data that are classified right.

    Raises:
        DataError: Shapes differ, codes are not finite or above 1e100, or all data to train on are of one class.

    Reference:
        Alain and Bengio (2017), Understanding Intermediate Layers Using Linear Classifier Probes.

    Example:
        >>> linear_probe([[-2.0], [-1.0], [1.0], [2.0]], [0, 0, 1, 1], [[-3.0], [0.5]], [0, 1])
        1.0
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(np.unique(coded("codes", codes, labels)[1])) < 2:
        raise DataError("labels: expected at least two classes to tell apart, found one")
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
    return _accuracy(probe, codes, labels, test_codes, test_labels)


def neighbour_accuracy(
    codes: ArrayLike, labels: ArrayLike, test_codes: ArrayLike, test_labels: ArrayLike, num_neighbours: int = 5
) -> float:
    """Accuracy of the majority among the nearest neighbours, Euclidean distance of codes as they are.

    Args:
        codes: Codes to search, (N, d).
        labels: Their classes, integers (N,).
        test_codes: Codes of other data, (M, d).
        test_labels: Their classes, (M,).
        num_neighbours: k; of classes with equal votes the smallest label wins.

    Returns:
        Share of the other data that are classified right.

    Raises:
        ValueError: `num_neighbours` is no whole number of at least 1.
        DataError: Shapes differ, codes are not finite or above 1e100, or fewer than k.

    Reference:
        Cover and Hart (1967), Nearest Neighbor Pattern Classification.

    Example:
        >>> neighbour_accuracy([[-2.0], [-1.0], [1.0], [2.0]], [0, 0, 1, 1], [[-3.0], [0.5]], [0, 1], 1)
        1.0
    """
    from sklearn.neighbors import KNeighborsClassifier

    whole_number("num_neighbours", num_neighbours, least=1)
    if (found := len(coded("codes", codes, labels)[0])) < num_neighbours:
        raise DataError(f"codes: expected at least num_neighbours = {num_neighbours} rows, found {found}")
    return _accuracy(KNeighborsClassifier(num_neighbours), codes, labels, test_codes, test_labels)


class ClusterAgreement(NamedTuple):
    """How clusters of codes agree with classes."""

    adjusted_rand: float
    """Pairs of data treated alike, corrected for chance: 1 for equal partitions, 0 on average for random ones."""
    normalised_mutual_information: float
    """I / mean(H, H) of clusters and classes: 1 for equal partitions, 0 for independent ones."""


def cluster_agreement(codes: ArrayLike, labels: ArrayLike, seed: int = 0) -> ClusterAgreement:
    """Agreement of k-means clusters, as many as there are classes, with the classes.

    Args:
        codes: Codes, (N, d), clustered as they are.
        labels: Classes, integers (N,); the clusters do not see them.
        seed: Of the ten starts of k-means.

    Raises:
        ValueError: The seed is no whole number, or negative.
        DataError: Shapes differ, or codes are not finite or above 1e100.

    Reference:
        Hubert and Arabie (1985), Comparing Partitions; Strehl and Ghosh (2002), Cluster Ensembles.

    Example:
        >>> cluster_agreement([[-2.0], [-1.9], [1.0], [1.1]], [7, 7, 3, 3])
        ClusterAgreement(adjusted_rand=1.0, normalised_mutual_information=1.0)
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    state = random_state(seed)
    z, y = coded("codes", codes, labels)
    clusters = KMeans(len(np.unique(y)), n_init=10, random_state=state).fit_predict(z)
    return ClusterAgreement(float(adjusted_rand_score(y, clusters)), float(normalized_mutual_info_score(y, clusters)))


def _accuracy(
    classifier: Any, codes: ArrayLike, labels: ArrayLike, test_codes: ArrayLike, test_labels: ArrayLike
) -> float:
    (z, y), (test_z, test_y) = coded("codes", codes, labels), coded("test_codes", test_codes, test_labels)
    if z.shape[1] != test_z.shape[1]:
        raise DataError(f"test_codes: expected {z.shape[1]} codes a datum as to train on, found {test_z.shape[1]}")
    return float(classifier.fit(z, y).score(test_z, test_y))
