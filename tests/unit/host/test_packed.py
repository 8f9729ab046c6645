import torch
from torch import nn

from nemo_minordpo.host.packed import PackedLinear, pack_linear_layers


class Model(nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.embedding = nn.Embedding(50, 24, dtype=dtype)
        self.inner = nn.Sequential(nn.Linear(24, 40, dtype=dtype), nn.Tanh(), nn.Linear(40, 24, dtype=dtype))
        self.head = nn.Linear(24, 50, bias=False, dtype=dtype)
        self.head.weight = self.embedding.weight  # tied

    def forward(self, ids):
        return self.head(self.inner(self.embedding(ids)))


def test_packed_layers_give_the_same_values():
    for dtype, error in ((torch.float32, 1e-5), (torch.bfloat16, 0.05)):
        torch.manual_seed(0)
        model = Model(dtype).eval()
        with torch.inference_mode():
            for shape in ((1, 1), (7, 1), (32, 1), (2, 100)):
                ids = torch.randint(50, shape)
                expected = model.float()(ids)
                packed = Model(dtype).eval()
                packed.load_state_dict(model.state_dict())
                pack_linear_layers(packed, rows=32)
                assert sum(isinstance(module, PackedLinear) for module in packed.modules()) == 3
                found = packed(ids)
                assert found.dtype == dtype
                torch.testing.assert_close(found.float(), expected, atol=error, rtol=error)


def test_other_types_are_left_alone():
    model = Model(torch.float64)
    pack_linear_layers(model, rows=4)
    assert not any(isinstance(module, PackedLinear) for module in model.modules())
