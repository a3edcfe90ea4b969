"""The parameter-efficient baselines by name.

Their numbers of trained parameters on ViT-L/14 (427 M), beside the share that Table 5 of Hystar's paper prints:

| name | parameters | share | Table 5 | |
|---|---|---|---|---|
| ia3 | 147,456 | 0.03 % | 0.1 % | see below |
| vpt | 786,432 | 0.18 % | 0.2 % | 32 prompts a block, chosen to fit |
| adaptformer | 1,991,616 | 0.47 % | 0.5 % | a bottleneck of 40, chosen to fit; AdaptFormer's own 64 would be 0.74 % |
| freestyle | 10,112,772 | 2.36 % | 11.5 % | the table counts unused parts of the public code |
| ssf | 546,816 | 0.13 % | – | |
| svft | 98,304 | 0.02 % | – | |
| last_block | 12,596,224 | 2.95 % | – | |

(IA)³ scales keys, values and inner activations. In the image tower these are 24 (1024 + 1024 + 4096) = 147,456 numbers;
with the text tower, 12 (768 + 768 + 3072) more, 202,752 (0.047 %). Neither rounds to 0.1 %. A scale for every output of
every linear layer of the blocks would: 221,184 in the image tower (0.052 %), 304,128 in both (0.071 %). Hystar's paper
does not say which tensors or towers are scaled. (Its other shares follow from the millions it prints, for example
(442 - 427) / 427 = 3.5 % for Hystar; (IA)³ would have 0 by this rule.)
"""

from __future__ import annotations

from hystar_fast.methods.adapted import Adapted
from hystar_fast.methods.adaptformer import AdaptFormer
from hystar_fast.methods.ia3 import IA3
from hystar_fast.methods.last_block import LastBlock
from hystar_fast.methods.ssf import SSF
from hystar_fast.methods.static_svd import StaticSVD
from hystar_fast.methods.style_prompts import StylePrompts
from hystar_fast.methods.vpt import VPT

BASELINES: dict[str, type[Adapted]] = {
    method.name: method for method in (IA3, VPT, AdaptFormer, StylePrompts, SSF, LastBlock, StaticSVD)
}
