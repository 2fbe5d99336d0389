"""Slices per second of the bare Keras network, of raysegment's inference graph, and of OpenVINO, in one sitting.

The engines take turns batch by batch, so that whatever else the machine does falls on all of them alike.
Usage: python benchmarks/inference_graph.py [--peer-python PYTHON_WITH_TORCH_AND_OPENVINO]
"""

import argparse
import os
import subprocess
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

from raysegment.model.engines.tensorflow import Predictor
from raysegment.model.unet import build_network, copy_as_plain

PEER = Path(__file__).with_name("peer_openvino.py")


class Peer:
    """OpenVINO in its own process and environment."""

    def __init__(self, python, precision, batch_size, size):
        command = [python, str(PEER), precision, str(batch_size), str(size)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        if self.process.stdout.readline().strip() != "ready":
            raise SystemExit(f"{python} cannot run {PEER.name}: it needs torch, onnx and openvino.")

    def __call__(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def timed(function):
    def run():
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    return run


def make_keras(model, precision, pixels):
    policy = {"float32": "float32", "bfloat16": "mixed_bfloat16"}[precision]
    plain = copy_as_plain(model, dtype=policy)
    function = tf.function(lambda batch: plain(batch, training=False))
    return timed(lambda: function(tf.constant(pixels)).numpy())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer-python", help="Python with torch, onnx and openvino")
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=6)
    options = parser.parse_args()
    keras.utils.set_random_seed(0)
    shape = (options.size, options.size, 3)
    model = build_network(input_shape=shape)
    pixels = np.random.default_rng(0).random((options.batch_size, *shape), np.float32)
    for precision in options.precisions:
        predictor = Predictor(model, precision=precision, batch_size=options.batch_size)
        engines = {
            "keras": make_keras(model, precision, pixels),
            "raysegment": timed(lambda predictor=predictor: predictor.predict(pixels)),
        }
        peer = Peer(options.peer_python, precision, options.batch_size, options.size) if options.peer_python else None
        if peer:
            engines["openvino"] = peer
        report(precision, options, engines)
        if peer:
            peer.close()


def report(precision, options, engines):
    seconds = {name: [] for name in engines}
    for engine in engines.values():
        engine()
    for _ in range(options.rounds):
        for name, engine in engines.items():
            seconds[name].append(engine())
    rates = {name: options.batch_size / np.median(values) for name, values in seconds.items()}
    for name, rate in rates.items():
        pairs = np.median(np.divide(seconds[name], seconds["raysegment"]))
        best = options.batch_size / min(seconds[name])
        print(f"{precision:9} {name:11} {rate:6.1f} slices/s (best {best:.1f}), raysegment is {pairs:.2f} of it")


if __name__ == "__main__":
    main()
