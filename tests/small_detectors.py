"""A Light-Head R-CNN that takes little to build."""

# Values of LightHeadRCNNConfig.
LIGHT_HEAD = {
    "weights": "none",
    "batch_norm": "running",
    "filters": 4,
    "blocks": (1, 1, 1, 1),
    "rpn_width": 8,
    "anchor_scales": (0.5, 1.0, 2.0),
    "middle": 4,
    "kernel": 5,
    "bins": 3,
    "channels": 2,
    "units": 8,
    "proposals_before": 40,
    "proposals": 20,
    "hard_examples": 8,
}
