"""Tasks in small models of torchvision and timm compute the same in onnxruntime."""

import pytest
import torch

from compat.architectures import ARCHITECTURES
from compat.checking import learn, make, make_inputs
from msh.subnetworks import WEIGHTS, MultiSubnetwork, OverlappingUnits, trace_units

SMALL = [architecture for library in ("torchvision", "timm") for architecture in ARCHITECTURES[library]]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch.onnx
@pytest.mark.parametrize("granularity", ["weight", "unit"])
@pytest.mark.parametrize("architecture", SMALL, ids=str)
def test_onnxruntime_computes_the_same(architecture, granularity):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    backbone, recipe = make(architecture)
    network, inputs = MultiSubnetwork(backbone, recipe=recipe), make_inputs(architecture, 1)
    learn(network, "a", inputs, WEIGHTS if granularity == "weight" else OverlappingUnits(trace_units(network)))
    module = network.module("a")
    sizes = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.onnx.export(module, (inputs,), dynamo=True, verbose=False, dynamic_shapes=sizes)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    several = torch.cat([inputs, inputs])
    found = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: several.numpy()})[0])
    expected = module(several)
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5
