"""Training data in every form, binarised or not, and bad data (RELIABILITY F7)."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import ppl_vae as pv
from tests.pairs import ModuleVAE, binary_rows
from tests.statistical import assert_mean
from tests.training import fresh, state, train


def test_data_in_every_form_give_the_same_run(tmp_path):
    x = binary_rows(10)
    np.save(tmp_path / "x.npy", x.numpy())
    forms = {
        "tensor": x,
        "numpy": x.numpy(),
        "double": x.numpy().astype(np.float64),
        "tuple": (x,),
        "strided": torch.stack([x, x], -1)[..., 0],
        "memory-mapped": np.load(tmp_path / "x.npy", mmap_mode="r"),
        "Dataset": torch.utils.data.TensorDataset(x),
        "big-endian": x.numpy().astype(">f4"),
    }
    states = []
    for form in forms.values():
        pair = fresh()
        train(pair, form)
        states.append(state(pair))
    for other in states[1:]:
        assert all(torch.equal(states[0][k], other[k]) for k in other)


@pytest.mark.parametrize("binarize", ["dynamic", "fixed"])
def test_binarisation_draws_from_the_grey_values(binarize, seed):
    seen = []

    class Spy(pv.ELBO):
        def evaluate(self, pair, batch, layout, beta):
            seen.append(batch[0].clone())
            return super().evaluate(pair, batch, layout, beta)

    x = torch.full((400, 5), 0.3)
    train(ModuleVAE(), x, binarize=binarize, objective=Spy(), epochs=10, batch_size=400, seed=seed)
    epochs = torch.stack([batch.sort(0).values for batch in seen])
    assert set(torch.cat(seen).unique().tolist()) == {0.0, 1.0}
    assert bool((epochs == epochs[0]).all()) == (binarize == "fixed")
    drawn = seen[0] if binarize == "fixed" else torch.cat(seen)
    assert_mean(drawn, 0.3, sigma=math.sqrt(0.3 * 0.7), effect=0.12)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.full((4, 5), 1.5), "row 0.*binarize"),
        (torch.full((4, 5), 3, dtype=torch.uint8), "divide by 255"),
    ],
)
def test_binarisation_needs_probabilities(data, message):
    with pytest.raises(pv.DataError, match=f"(?s){message}"):
        train(ModuleVAE(), data, binarize="dynamic")


class Derived(ModuleVAE):
    """Observes what it makes of the data."""

    def model(self, x):
        super().model(1 - x)


@pytest.mark.parametrize("options", [{}, {"validation": torch.full((300, 5), 0.6)}])
def test_what_is_derived_from_data_is_checked_on_draws(options):
    assert train(Derived(), torch.full((300, 5), 0.3), binarize="dynamic", epochs=1, **options).steps == 75


def test_labels_beside_data_that_are_drawn_are_checked():
    class Labelled(ModuleVAE):
        def model(self, x, y):
            super().model(x)
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Categorical(x.new_ones(3)), obs=y.clone())

        def guide(self, x, y):
            super().guide(x)

    x, y = torch.full((300, 5), 0.3), torch.arange(300) % 3
    assert train(fresh(make=Labelled), (x, y), binarize="dynamic", epochs=1).steps == 75
    y[270] = 3
    with pytest.raises(pv.DataError, match=r"'y', row 270.*found 3"):
        train(fresh(make=Labelled), (x, y), binarize="dynamic")


def bad_rows():
    x = binary_rows(20)
    x[13, 2] = torch.nan
    return x


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (bad_rows, "row 13.*NaN"),
        (lambda: torch.zeros(0, 5), "empty"),
        (lambda: (torch.zeros(4, 5), torch.zeros(3)), r"equal numbers of rows.*\[4, 3\]"),
        (lambda: torch.tensor(3.0), "scalar"),
        (lambda: [["a"]], "list|numpy"),
        (lambda: np.array([["a", "b"]]), "dtype <U1"),
        (lambda: np.array([object()]), "dtype object"),
        (lambda: (), "empty tuple"),
        (lambda: torch.zeros(4, 5, dtype=torch.complex64), "real dense"),
        (lambda: torch.full((4, 5), 2.0), "row 0.*boolean"),
        (lambda: torch.zeros(4, 5, dtype=torch.uint8), "dtype"),
        (lambda: torch.zeros(4, 7), "failed on a batch"),
    ],
)
def test_bad_data_is_an_error_with_the_row(data, message):
    """F7."""
    with pytest.raises(pv.PplVaeError, match=f"(?s){message}"):
        train(ModuleVAE(), data())


ZEROS = torch.zeros(4, 2)
NO_NUMBERS = {
    "longdouble": (lambda: ZEROS.numpy().astype(np.longdouble), r"found .*float\d+"),
    "masked": (
        lambda: np.ma.masked_array(ZEROS, [[1, 0]] * 4),
        r"masked array with 4 entries masked: .*x\.filled\(0\)",
    ),
    "float8": (lambda: ZEROS.to(torch.float8_e4m3fn), r"found torch.float8_e4m3fn: .*x\.float\(\)"),
    "bits8": (lambda: ZEROS.to(torch.uint8).view(torch.bits8), "found torch.bits8"),
    "qint8": (lambda: torch.quantize_per_tensor(ZEROS, 0.1, 0, torch.qint8), r"found torch.qint8: .*x\.dequantize\(\)"),
    "meta": (lambda: ZEROS.to("meta"), "on the device meta, which holds none"),
    "nested": (lambda: torch.nested.nested_tensor([*ZEROS]), "a nested tensor: pad them to one shape"),
    "csr": (lambda: ZEROS.to_sparse_csr(), r"layout torch.sparse_csr: pass x\.to_dense\(\)"),
}
PPCA = pv.PPCA([[1.0], [0.5]], [0.0, 0.0], 0.5)
USES = {
    "fit": lambda x: train(ModuleVAE(), x),
    "log_likelihood": lambda x: pv.log_likelihood(PPCA, x, 10, progress=False),
    "log_prob": PPCA.log_prob,
    "GMM.fit": lambda x: pv.GMM.fit(x, 1),
    "binarize": pv.data.binarize,
}


CONVERTED = {("longdouble", "log_prob"), ("longdouble", "GMM.fit")}  # to double precision, as all that these are given


@pytest.mark.filterwarnings("ignore:(Sparse CSR|The PyTorch API of nested|.*quantiz)")
@pytest.mark.parametrize(("kind", "use"), sorted({(kind, use) for kind in NO_NUMBERS for use in USES} - CONVERTED))
def test_what_torch_does_not_compute_with_is_refused_by_its_type(kind, use):
    make, message = NO_NUMBERS[kind]
    with pytest.raises(pv.DataError, match=message):
        USES[use](make())


def test_an_array_of_which_nothing_is_masked_is_one():
    x = np.ones((4, 2))
    found, expected = (pv.log_likelihood(PPCA, a, 10, progress=False).value for a in (np.ma.masked_array(x), x))
    np.testing.assert_array_equal(found, expected)


def test_masked_items_of_a_dataset_are_refused():
    with pytest.raises(pv.DataError, match=r"item 1 of the Dataset: .* a masked array"):
        train(ModuleVAE(), Items(np.zeros(5), np.ma.masked_array(np.zeros(5), [0, 0, 1, 0, 0])))


def test_the_row_of_bad_data_is_counted_from_the_first():
    x = torch.zeros(5000, 5)
    x[4500, 1] = torch.inf
    with pytest.raises(pv.DataError, match="row 4500"):
        train(ModuleVAE(), x)


class Items(torch.utils.data.Dataset):
    def __init__(self, *items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


class Endless(torch.utils.data.IterableDataset):
    def __iter__(self):
        while True:
            yield torch.zeros(5)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Items(torch.zeros(5), torch.zeros(4)), r"item 1 of the Dataset.*\(5,\).*\(4,\)"),
        (Items((torch.zeros(5),), (torch.zeros(5), 1)), r"item 1 of the Dataset.*\(5,\).*mask"),
        (Items("a"), "item 0 of the Dataset: expected a tensor"),
        (Endless(), "a Dataset with a length.*Endless"),
    ],
)
def test_datasets_that_are_no_rows(data, message):
    with pytest.raises(pv.DataError, match=f"(?s){message}"):
        train(ModuleVAE(), data)


def test_bytes_on_disk_are_not_to_be_loaded_for_their_division(tmp_path):
    np.save(tmp_path / "x.npy", np.full((8, 5), 255, np.uint8))
    on_disk = np.load(tmp_path / "x.npy", mmap_mode="r", allow_pickle=False)
    with pytest.raises(pv.DataError, match=r"found torch.uint8; write x / 255 to a float32 file.*open_memmap"):
        train(ModuleVAE(), on_disk, binarize="dynamic")
