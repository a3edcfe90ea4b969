"""The parameter-efficient baselines by name, in one place.

Their sizes on ViT-L/14 beside Table 5 of the paper (427 M parameters, of which it gives what each adds):

| name | parameters | share | Table 5 | |
|---|---|---|---|---|
| ia3 | 147,456 | 0.03 % | 0.1 % | the paper says neither which tensors nor which towers are rescaled |
| vpt | 786,432 | 0.18 % | 0.2 % | 32 prompts a block, chosen to fit |
| adaptformer | 1,991,616 | 0.47 % | 0.5 % | a bottleneck of 40, chosen to fit; AdaptFormer's own 64 would be 0.74 % |
| freestyle | 10,112,772 | 2.36 % | 11.5 % | the table counts parts that the public code holds and never uses |
| ssf | 546,816 | 0.13 % | – | |
| svft | 98,304 | 0.02 % | – | |
| last_block | 12,596,224 | 2.95 % | – | |
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
