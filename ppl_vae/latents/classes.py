"""How well codes tell classes apart: linear probe, nearest neighbours, clusters."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ppl_vae.latents.inputs import coded

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
        DataError: Shapes differ, or codes are not finite.

    Reference:
        Alain and Bengio (2017), Understanding Intermediate Layers Using Linear Classifier Probes.

    Example:
        >>> linear_probe([[-2.0], [-1.0], [1.0], [2.0]], [0, 0, 1, 1], [[-3.0], [0.5]], [0, 1])
        1.0
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

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
        DataError: Shapes differ, or codes are not finite.

    Reference:
        Cover and Hart (1967), Nearest Neighbor Pattern Classification.

    Example:
        >>> neighbour_accuracy([[-2.0], [-1.0], [1.0], [2.0]], [0, 0, 1, 1], [[-3.0], [0.5]], [0, 1], 1)
        1.0
    """
    from sklearn.neighbors import KNeighborsClassifier

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
        DataError: Shapes differ, or codes are not finite.

    Reference:
        Hubert and Arabie (1985), Comparing Partitions; Strehl and Ghosh (2002), Cluster Ensembles.

    Example:
        >>> cluster_agreement([[-2.0], [-1.9], [1.0], [1.1]], [7, 7, 3, 3])
        ClusterAgreement(adjusted_rand=1.0, normalised_mutual_information=1.0)
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    z, y = coded("codes", codes, labels)
    clusters = KMeans(len(np.unique(y)), n_init=10, random_state=seed).fit_predict(z)
    return ClusterAgreement(float(adjusted_rand_score(y, clusters)), float(normalized_mutual_info_score(y, clusters)))


def _accuracy(
    classifier: Any, codes: ArrayLike, labels: ArrayLike, test_codes: ArrayLike, test_labels: ArrayLike
) -> float:
    classifier.fit(*coded("codes", codes, labels))
    return float(classifier.score(*coded("test_codes", test_codes, test_labels)))
