"""Appendices 1 and 2 of the paper, letter by letter, and where they cannot be used as printed."""

from __future__ import annotations

APPENDIX_1 = """\
layer {
   name: "fc8"
   type: "InnerProduct"
   bottom: "fc7"
   top: "fc8"
   param {
    lr_mult: 1
    decay_mult: 1
   param {
    lr_mult: 2
    decay_mult: 0
   inner_product_param {
    num_output: 1
    weight_filler {
      type: "gaussian"
      std: 0.01
    bias_filler {
      type: "constant"
      value: 0
layer {
   name: "loss"
   type: "EuclideanLoss"
   bottom: "fc8"
   bottom: "label"
   top: "loss"
"""

APPENDIX_2 = """\
net: "train_val.prototxt"
test_iter: 100
test_interval: 100
base_lr: 0.000003
lr_policy: "step"
gamma: 0.1
stepsize: 800
display: 20
max_iter: 3000
momentum: 0.9
weight_decay: 0.0005
snapshot: 1000
snapshot_prefix: "SNAPSHOT"
solver_mode: GPU
"""

MISPRINTS = (
    "Appendix 1: the closing braces of layer, param, inner_product_param, weight_filler and bias_filler are missing; "
    "Caffe cannot parse it. prototxt/paper/train_val.prototxt has them.",
    "Appendix 1: the layer keeps the name fc8 with one output. Started with --weights and the stock ImageNet weights "
    "(fc8: 1000 x 4096), Caffe aborts: `Cannot copy param 0 weights from layer 'fc8'; shape mismatch`. "
    "bonecaffe removes fc8 from a copy of the weights.",
    "Appendix 2 can be used as printed.",
)


def text() -> str:
    """Both appendices as printed, each under its heading, with the misprints named in comments."""
    notes = "".join(f"# {note}\n" for note in MISPRINTS)
    return (
        f"{notes}\n# Appendix 1: final layer for regression network\n{APPENDIX_1}"
        f"\n# Appendix 2: training parameter values\n{APPENDIX_2}"
    )
