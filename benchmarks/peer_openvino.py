"""The U-Net of `inference_graph.py` in OpenVINO: prints the seconds of one batch for each line it reads.

Needs torch, onnx and openvino. Usage: peer_openvino.py PRECISION BATCH SIZE
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import openvino
import torch
from torch import nn


def block(channels, filters):
    parts = []
    for width in (channels, filters):
        parts += [nn.Conv2d(width, filters, 3, padding=1, bias=False), nn.BatchNorm2d(filters), nn.ReLU()]
    return nn.Sequential(*parts)


class UNet(nn.Module):
    def __init__(self, filters=32, depth=4, channels=3):
        super().__init__()
        widths = [filters * 2**level for level in range(depth + 1)]
        self.down = nn.ModuleList(block(a, b) for a, b in zip([channels, *widths], widths, strict=False))
        pairs = list(zip(widths[1:], widths, strict=False))[::-1]
        self.up = nn.ModuleList(nn.ConvTranspose2d(wide, narrow, 2, 2) for wide, narrow in pairs)
        self.join = nn.ModuleList(block(wide, narrow) for wide, narrow in pairs)
        self.pool, self.out = nn.MaxPool2d(2), nn.Conv2d(filters, 1, 1)

    def forward(self, features):
        skipped = []
        for level, down in enumerate(self.down):
            features = down(features if level == 0 else self.pool(features))
            skipped.append(features)
        for up, join, skip in zip(self.up, self.join, skipped[-2::-1], strict=True):
            features = join(torch.cat([up(features), skip], 1))
        return torch.sigmoid(self.out(features))


def main():
    precision, batch, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    pixels = np.random.default_rng(0).random((batch, 3, size, size), np.float32)
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "unet.onnx")
        torch.onnx.export(UNet().eval(), torch.from_numpy(pixels), file, input_names=["x"], dynamo=False)
        core = openvino.Core()
        hint = {"INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32"}
        compiled = core.compile_model(core.read_model(file), "CPU", hint)
    request = compiled.create_infer_request()
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        request.infer([pixels])
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main()
