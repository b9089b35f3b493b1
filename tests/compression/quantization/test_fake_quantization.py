"""Fake quantization rounds as integers would, and its gradient is 1 inside the range and 0 outside."""

import copy

import numpy as np
import pytest
import torch

from mlites.compression.quantization.fake_quantization import (
    AVERAGING,
    ActivationQuantizer,
    BiasQuantizer,
    Clock,
    ConstantQuantizer,
    SameRange,
    WeightQuantizer,
    activation_scale,
    weight_scale,
)


def quantizer(low: float, high: float, freeze_after: int = 10) -> tuple[ActivationQuantizer, Clock]:
    clock = Clock()
    return ActivationQuantizer(low, high, clock, freeze_after), clock


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.55), (0.0, 6.0), (-3.0, -0.5), (0.2, 0.9), (-0.4, 0.0)])
def test_activations_round_as_integers_of_eight_bits_would(low: float, high: float) -> None:
    values = np.random.default_rng(0).normal(size=4000).astype(np.float32) * 2
    module, _ = quantizer(low, high)
    low, high = min(low, 0), max(high, 0)
    scale = np.float32((high - low) / 255)
    zero_point = np.clip(np.round(-low / scale), 0, 255)
    integers = np.clip(np.round(values / scale) + zero_point, 0, 255)
    found = module.eval()(torch.from_numpy(values)).numpy()
    off = np.abs(found - (integers - zero_point) * scale)
    assert np.count_nonzero(off > 1e-5) <= 4  # a tie may fall either way
    assert (off <= scale * 1.001).all()


def test_zero_is_represented_exactly_in_every_range() -> None:
    for low, high in ((-1.0, 1.0), (-0.013, 7.77), (0.5, 3.0), (-9.0, -2.0)):
        module, _ = quantizer(low, high)
        assert float(module.eval()(torch.zeros(1))) == 0.0


def test_gradient_is_one_inside_the_range_and_zero_outside() -> None:
    module, _ = quantizer(-1.0, 1.55)
    values = torch.tensor([-5.0, -1.1, -0.9, -0.004, 0.0, 0.7, 1.5, 1.6, 9.0], requires_grad=True)
    module.eval()(values).sum().backward()
    assert values.grad is not None and values.grad.tolist() == [0, 0, 1, 1, 1, 1, 1, 0, 0]


@pytest.mark.parametrize("levels", [127, 64])
@pytest.mark.parametrize("axis", [None, 0, 1, -1])
def test_weights_round_symmetrically_in_their_own_range(axis: int | None, levels: int) -> None:
    weight = torch.from_numpy(np.random.default_rng(1).normal(size=(4, 3, 5)).astype(np.float32)).requires_grad_()
    values = weight.detach().numpy()
    others = None if axis is None else tuple(one for one in range(3) if one != axis % 3)
    scale = np.abs(values).max(others, keepdims=True) / levels
    found = WeightQuantizer(axis, levels)(weight)
    assert np.allclose(found.detach().numpy(), np.round(values / scale) * scale, atol=1e-6)
    assert np.allclose(weight_scale(weight, axis, levels).numpy(), scale.flatten() if axis is not None else scale[0][0])
    found.sum().backward()
    assert weight.grad is not None and bool((weight.grad == 1).all())


def test_weights_that_are_zero_stay_zero_even_where_a_whole_channel_is() -> None:
    weight = torch.tensor([[0.0, 0.0], [0.3, 0.0], [-1e-30, 0.0]])
    for axis in (None, 0):
        rounded = WeightQuantizer(axis, 127)(weight)
        assert bool((rounded[weight == 0] == 0).all()) and bool(rounded.isfinite().all())


def test_range_is_a_moving_average_that_freezes() -> None:
    module, clock = quantizer(-1.0, 1.0, freeze_after=2)
    expected = np.array([-1.0, 1.0])
    for number, (low, high) in enumerate([(-2.0, 3.0), (-0.5, 8.0), (-100.0, 100.0)]):
        clock.batches += 1
        module.train()(torch.tensor([low, 0.0, high]))
        if number < 2:
            expected += AVERAGING * (np.array([low, high]) - expected)
        assert np.allclose([float(module.low), float(module.high)], expected, rtol=1e-6)
    module.eval()(torch.tensor([-1e6, 1e6]))
    assert np.allclose([float(module.low), float(module.high)], expected, rtol=1e-6)


def test_a_shared_range_follows_its_owner_in_a_copy_too() -> None:
    module, clock = quantizer(0.0, 1.0)
    network = torch.nn.ModuleList([module, SameRange(module), clock])
    copied = copy.deepcopy(network)
    copied[0].high.fill_(10.0)
    assert float(copied[1](torch.tensor(9.0))) == pytest.approx(9.0, abs=0.05)
    assert float(network[1](torch.tensor(9.0))) == 1.0
    assert sorted(network.state_dict()) == ["0.high", "0.low", "2._extra_state"]


def test_clock_goes_on_where_the_saved_one_stood() -> None:
    clock, resumed = Clock(), Clock()
    clock.batches = 41
    resumed.load_state_dict(clock.state_dict())
    assert resumed.batches == 41


def test_constants_round_in_the_range_of_their_own_values() -> None:
    values = torch.tensor([-0.5, 0.0, 0.1, 2.05])
    scale, zero_point = activation_scale(torch.tensor(-0.5), torch.tensor(2.05))
    assert float(scale) == pytest.approx(0.01) and int(zero_point) == 50
    assert torch.allclose(ConstantQuantizer()(values), values, atol=0.005)


def test_bias_rounds_to_the_product_of_both_scales() -> None:
    source, _ = quantizer(0.0, 2.55)
    weights = WeightQuantizer(0, 127)
    weights(torch.tensor([[12.7], [1.27]]))
    bias = torch.tensor([0.0123, 0.0123], requires_grad=True)
    rounded = BiasQuantizer(source, weights, 1.0)(bias)
    assert rounded.tolist() == pytest.approx([0.012, 0.0123], abs=1e-7)
    assert BiasQuantizer(source, weights, 2.0)(bias)[0].item() == pytest.approx(0.0125, abs=1e-7)
    rounded.sum().backward()
    assert bias.grad is not None and bias.grad.tolist() == [1, 1]
