"""Layers that a factorization leaves alone, each with its reason."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from mlites.compression.factorization.candidates import Call, find_candidates
from mlites.compression.factorization.factorize import factorize_layers
from mlites.errors import InputError
from mlites.recipe import Factorize


class Widened(nn.Linear):
    """A layer with code of its own."""

    def forward(self, inputs: Tensor) -> Tensor:
        return 2 * super().forward(inputs)


class Zoo(nn.Module):
    """One layer of every kind that stays whole, and one that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.mirrored = nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect")
        self.lopsided = nn.Conv2d(16, 16, 2, padding="same")
        self.silent = nn.Conv2d(16, 16, 3, padding=1)
        self.good = nn.Conv2d(16, 16, 3, padding=1)
        self.row = nn.Conv2d(16, 16, (1, 3), padding=(0, 1))
        self.up = nn.ConvTranspose2d(16, 16, 2)
        self.own, self.normed = Widened(16, 16), weight_norm(nn.Linear(16, 16))
        self.hooked, self.unused = nn.Linear(16, 16), nn.Linear(16, 16)
        self.tied, self.tied_too = nn.Linear(16, 16), nn.Linear(16, 16)
        self.once = nn.Linear(16, 16)
        self.again = self.once
        self.read = nn.Linear(16, 16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.output = nn.Linear(16, 3)
        nn.init.zeros_(self.silent.weight)
        self.tied_too.weight = self.tied.weight
        self.hooked.register_forward_hook(lambda _layer, _inputs, output: output + 1)

    def forward(self, rows: Tensor) -> Tensor:
        values = self.silent(self.lopsided(self.mirrored(self.grouped(self.stem(rows)))))
        values = self.up(self.row(self.good(values))).flatten(2).transpose(1, 2)
        values = self.attention(values, values, values)[0].mean(1)
        for layer in (self.own, self.normed, self.hooked, self.tied, self.tied_too, self.once, self.again):
            values = layer(values)
        values = self.read(values) + self.read.weight.mean()
        return self.output(values)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_every_layer_that_stays_whole_is_named_with_its_reason() -> None:
    torch.manual_seed(0)
    module, rows = Zoo().eval(), torch.randn(1, 1, 6, 6)
    factorized, facts = factorize_layers(
        module, rows, Factorize.model_validate({"pass": "factorize", "method": "tucker", "energy": 0.3}), 0
    )
    assert list(facts["ranks"]) == ["good", "row"]
    fragments = {
        "stem": "too small: 1 channels in, 16 out, and 8 are the least",
        "grouped": "grouped (4 groups), so that its channels are apart already",
        "mirrored": "pads by reflect",
        "lopsided": "pads one side more than the other",
        "silent": "weight is zero or not finite",
        "up": "is a ConvTranspose2d, not a plain",
        "own": "is a Widened, not a plain Linear",
        "normed": "is a ParametrizedLinear",
        "hooked": "carries hooks",
        "unused": "never calls it",
        "tied": "shares its weight",
        "tied_too": "shares its weight",
        "once": "holds it under 2 names",
        "read": "does more with it than call it: 'Sequential' object has no attribute 'weight'",
        "attention.out_proj": "is a NonDynamicallyQuantizableLinear",
        "output": "16 channels in, 3 out",
    }
    assert set(facts["kept_whole"]) == set(fragments)
    assert all(fragment in facts["kept_whole"][name] for name, fragment in fragments.items())
    assert isinstance(factorized, Zoo) and factorized(rows).shape == (1, 3)
    assert factorized.tied.weight is factorized.tied_too.weight and factorized.once is factorized.again


@pytest.mark.parametrize(
    ("method", "name", "reason"),
    [
        ("svd", "good", "its kernel is 3x3; svd is for linear layers and 1x1 convolutions"),
        ("cp", "row", "its kernel is 1x3; cp splits kernels that extend in both directions"),
        ("depthwise-separable", "hidden", "it has no spatial kernel to separate"),
    ],
)
def test_layers_that_a_method_does_not_suit_are_named(method: str, name: str, reason: str) -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.good, self.row = nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, (1, 3))
            self.hidden = nn.Linear(16, 16)

        def forward(self, rows: Tensor) -> Tensor:
            return self.hidden(self.row(self.good(rows)).mean((2, 3)))

    found, reasons = find_candidates(Mixed().eval(), torch.zeros(1, 16, 6, 6), method)
    assert reasons[name] == reason and name not in found and set(found) | set(reasons) == {"good", "row", "hidden"}


def test_calls_are_counted_for_one_row() -> None:
    class Patches(nn.Module):
        """Cuts a picture into four, and looks at each twice."""

        def __init__(self) -> None:
            super().__init__()
            self.look, self.mix = nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.Linear(8, 8)

        def forward(self, rows: Tensor) -> Tensor:
            patches = rows.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(-1, 8, 4, 4)
            return self.mix(self.look(input=self.look(patches)).reshape(len(rows), 4, 8)).mean(1)

    found, _ = find_candidates(Patches().eval(), torch.zeros(1, 8, 8, 8), "tucker")
    assert found["look"].calls == (Call((16, 4), (8, 2)), Call((8, 2), (4, 1)))
    assert found["mix"].calls == (Call((1, 4), (1, 4)),)


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (nn.Linear(16, 16), {}, "by tucker: network: it is the whole network"),
        (nn.Sequential(nn.ReLU()), {}, "the network has no linear layer or convolution"),
        (nn.Sequential(nn.Linear(16, 4)), {"method": "svd"}, "by svd: 0: it is too small"),
        (
            nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16)),
            {"method": "svd"},
            "by svd: 0: no rank saves anything; 1: no rank saves anything",
        ),
        (
            nn.Sequential(nn.Linear(16, 64), *(nn.Linear(64, 64) for _ in range(6))),
            {"method": "svd", "energy": 0.999},
            r"0: no rank that saves anything keeps 99.9% of its energy; 1: .*; and 2 more$",
        ),
        (
            nn.Sequential(nn.Linear(16, 64), nn.Linear(64, 4)),
            {"method": "svd", "budget": 0.2},
            "budget 0.2 is out of reach: layers that stay whole and the lowest ranks of the others take 0.700 of",
        ),
    ],
)
def test_network_in_which_nothing_can_be_saved_is_refused(
    module: nn.Module, options: dict[str, object], message: str
) -> None:
    torch.manual_seed(0)
    with pytest.raises(InputError, match=message) as caught:
        factorize_layers(
            module,
            torch.zeros(1, 16),
            Factorize.model_validate({"pass": "factorize", "method": "tucker", **options}),
            0,
        )
    assert "\n" not in str(caught.value)
