"""Which layers have FP8 scales, and that evaluation does not change them."""

from types import SimpleNamespace

import pytest
import torch

from nemo_minordpo.train.model import fp8


class Scaled(torch.nn.Linear):
    """A layer with the methods of Transformer Engine's that we use."""

    def __init__(self):
        super().__init__(2, 2)
        self.fp8_meta = {"scaling_fwd": SimpleNamespace(scale=torch.ones(1), amax_history=torch.zeros(2, 1))}

    def get_fp8_meta_tensors(self):
        return {key: [meta.scale.clone(), meta.amax_history.clone()] for key, meta in self.fp8_meta.items()}

    def reset_fp8_meta_tensors(self, tensors):
        for key, meta in self.fp8_meta.items():
            meta.scale.copy_(tensors[key][0])
            meta.amax_history.copy_(tensors[key][1])


class Model(torch.nn.Module):
    """Like NeMo's: a wrapped module, or a plain list of them, as Megatron's distributed optimizer requires."""

    def __init__(self, *layers, as_list, fp8=True):
        super().__init__()
        self.uses_fp8 = fp8
        part = torch.nn.Sequential(*layers)
        self.model = [part] if as_list else part

    def get_model_module_list(self):
        return self.model if isinstance(self.model, list) else [self.model]


@pytest.mark.parametrize("as_list", [True, False])
def test_every_layer_with_scales_is_found(as_list):
    layers = [Scaled(), torch.nn.Linear(2, 2), Scaled()]
    model = Model(*layers, as_list=as_list)
    assert fp8._layers(model) == [layers[0], layers[2]]
    # control: the model's own modules() does not include them if it is a list
    assert (layers[0] in model.modules()) is not as_list


def test_having_no_scales_is_an_error_with_fp8():
    with pytest.raises(RuntimeError, match=r"model\.fp8=true, but none of the model's layers has FP8 scales"):
        fp8._layers(Model(torch.nn.Linear(2, 2), as_list=True))
    assert fp8._layers(Model(torch.nn.Linear(2, 2), as_list=True, fp8=False)) == []


@pytest.mark.parametrize("as_list", [True, False])
def test_evaluation_does_not_change_scales_or_history(as_list):
    layer = Scaled()
    model = Model(layer, as_list=as_list)
    meta = layer.fp8_meta["scaling_fwd"]
    with fp8.scales_kept(model):
        fp8.move_scales(model)
        meta.amax_history[0] = 7.0
        assert meta.scale.item() == 0.75
    assert meta.scale.item() == 1.0
    assert meta.amax_history.max() == 0.0
