import copy

import torch
from torch import nn

from deeplab.model import DeepLabV3
from pipeline.training.facts import forward_flops
from tests.tiny import model_config


def test_a_convolution_costs_two_operations_for_each_multiply_add():
    assert forward_flops(nn.Conv2d(3, 5, 3, padding=1, bias=False), (7, 8)) == 2 * 7 * 8 * 3 * 5 * 9


def test_counting_draws_no_random_number_and_leaves_the_network_as_it_was():
    network = DeepLabV3(model_config(), 3).train()
    before, state = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    assert forward_flops(network, (32, 32)) > 1e6
    assert torch.equal(torch.get_rng_state(), state)
    assert network.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
