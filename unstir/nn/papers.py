"""The networks of the papers, by configuration: what they print a number of weights for, and we have to the last one.

Knows: which width, levels, attention and style of block each paper's network has.
Does not know: how it was trained, or on what.
"""

from __future__ import annotations

from dataclasses import replace

from unstir.nn.dit_zero import DiTZeroConfig
from unstir.nn.layers import BlockStyle
from unstir.nn.text import TextConfig
from unstir.nn.unet import UNetConfig

_IMAGENET = 1000  # classes

_DDPM = UNetConfig(
    width=128,
    heads=1,
    style=BlockStyle(modulation="shift", dropout=0.1, epsilon=1e-6),
    has_normed_queries=False,
    pads_evenly=False,
    text=None,
)
_IDDPM = UNetConfig(out_channels=6, width=128, blocks=3, heads=4, attention=(2, 3), has_normed_queries=False, text=None)
_ADM = UNetConfig(
    out_channels=6,
    width=256,
    blocks=2,
    head_width=64,
    style=BlockStyle(resampling="block"),
    has_normed_queries=False,
    text=None,
    classes=_IMAGENET,
)
_LDM = UNetConfig(blocks=2, has_normed_queries=False, text=None)

PAPERS: dict[str, UNetConfig | DiTZeroConfig] = {
    "ddpm_cifar10": replace(_DDPM, multipliers=(1, 2, 2, 2), attention=(1,)),
    "ddpm_256": replace(_DDPM, multipliers=(1, 1, 2, 2, 4, 4), attention=(4,), style=replace(_DDPM.style, dropout=0.0)),
    "iddpm_cifar10": replace(_IDDPM, multipliers=(1, 2, 2, 2), attention=(1, 2), style=BlockStyle(dropout=0.3)),
    "iddpm_imagenet64": replace(_IDDPM, multipliers=(1, 2, 3, 4)),
    "iddpm_imagenet64_classes": replace(_IDDPM, width=192, multipliers=(1, 2, 3, 4), classes=_IMAGENET),
    "adm_imagenet64": replace(
        _ADM,
        width=192,
        multipliers=(1, 2, 3, 4),
        blocks=3,
        attention=(1, 2, 3),
        style=replace(_ADM.style, dropout=0.1),
    ),
    "adm_imagenet128": replace(_ADM, multipliers=(1, 1, 2, 3, 4), attention=(2, 3, 4), heads=4, head_width=None),
    "adm_imagenet256": replace(_ADM, multipliers=(1, 1, 2, 2, 4, 4), attention=(3, 4, 5)),
    # The finest level has half of the 256 channels that the sinusoids and the vector are counted in.
    "adm_imagenet512": replace(
        _ADM, width=128, multipliers=(1, 2, 2, 4, 4, 8, 8), attention=(4, 5, 6), vector_width=1024
    ),
    # These see the small picture, enlarged, as three more channels.
    "adm_upsampler256": replace(
        _ADM,
        channels=6,
        width=192,
        multipliers=(1, 1, 2, 2, 4, 4),
        attention=(3, 4, 5),
        heads=4,
        head_width=None,
    ),
    "adm_upsampler512": replace(_ADM, channels=6, width=192, multipliers=(1, 1, 2, 2, 4, 4), attention=(4, 5)),
    "ldm_celeba256": replace(
        _LDM,
        width=224,
        multipliers=(1, 2, 3, 4),
        attention=(1, 2, 3),
        head_width=32,
        style=BlockStyle(modulation="shift"),
    ),
    "ldm_churches256": replace(
        _LDM,
        channels=4,
        width=192,
        multipliers=(1, 2, 2, 4, 4),
        attention=(0, 1, 2, 3),
        heads=8,
        style=BlockStyle(resampling="block"),
    ),
    # Its text encoder stands outside of it, and no pooled words come from there: then ``reader`` and ``vector.pooled``
    # are beside the point, and are not among the 860 million weights.
    "stable_diffusion_1": replace(
        _LDM,
        channels=4,
        width=320,
        multipliers=(1, 2, 4, 4),
        attention=(0, 1, 2),
        heads=8,
        transformers=1,
        style=BlockStyle(modulation="shift"),
        text=TextConfig(vocabulary=49408, max_tokens=77, width=768, depth=12, heads=12),
    ),
    "edm_cifar10": UNetConfig(
        width=128,
        multipliers=(2, 2, 2),
        blocks=4,
        attention=(1,),
        heads=1,
        up_attention="last",
        style=BlockStyle(
            modulation="shift", dropout=0.13, epsilon=1e-6, resampling="projected_block", sum_scale=0.5**0.5
        ),
        has_normed_queries=False,
        text=None,
    ),
    "dit_xl2": DiTZeroConfig(
        channels=4, out_channels=8, size=32, patch=2, width=1152, depth=28, heads=16, classes=_IMAGENET, text=None
    ),
}
"""By paper and data.

Source: Ho et al. 2020, arXiv:2006.11239, Appendix B (ddpm); Nichol & Dhariwal 2021, arXiv:2102.09672, Appendix A and
    code (iddpm); Dhariwal & Nichol 2021, arXiv:2105.05233, Tables 11 to 14 and code (adm); Rombach et al. 2022,
    arXiv:2112.10752, Tables 12 to 15 and code (ldm, stable_diffusion_1); Karras et al. 2022, arXiv:2206.00364, Table 7
    and code (edm: its DDPM++ without classes and without the labels of augmentation); Peebles & Xie 2023,
    arXiv:2212.09748, Table 1 (dit).
"""
