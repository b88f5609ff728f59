"""The papers behind a recipe: what a card cites."""

from collections.abc import Mapping
from typing import Any

from ...config import CompressionConfig, renamed

AZIZI = """@misc{azizi2024memory,
  title = {Memory-Efficient Vision Transformers: An Activation-Aware Mixed-Rank Compression Strategy},
  author = {Azizi, Seyedarmin and Nazemi, Mahdi and Pedram, Massoud},
  year = {2024}, eprint = {2402.06004}, archivePrefix = {arXiv}
}"""
KUMAR = """@misc{kumar2022vision,
  title = {Vision Transformer Compression with Structured Pruning and Low Rank Approximation},
  author = {Kumar, Ankur},
  year = {2022}, eprint = {2203.13444}, archivePrefix = {arXiv}
}"""
ZHU = """@misc{zhu2021vision,
  title = {Vision Transformer Pruning},
  author = {Zhu, Mingjian and Tang, Yehui and Han, Kai},
  year = {2021}, eprint = {2104.08500}, archivePrefix = {arXiv}
}"""
HSU = """@misc{hsu2022language,
  title = {Language model compression with weighted low-rank factorization},
  author = {Hsu, Yen-Chang and Hua, Ting and Chang, Sungen and Lou, Qian and Shen, Yilin and Jin, Hongxia},
  year = {2022}, eprint = {2207.00112}, archivePrefix = {arXiv}
}"""
WANG = """@misc{wang2024svdllm,
  title = {SVD-LLM: Truncation-aware Singular Value Decomposition for Large Language Model Compression},
  author = {Wang, Xin and Zheng, Yu and Wan, Zhongwei and Zhang, Mi},
  year = {2024}, eprint = {2403.07378}, archivePrefix = {arXiv}
}"""
MARTENS = """@misc{martens2015optimizing,
  title = {Optimizing Neural Networks with Kronecker-factored Approximate Curvature},
  author = {Martens, James and Grosse, Roger},
  year = {2015}, eprint = {1503.05671}, archivePrefix = {arXiv}
}"""
FRANTAR = """@misc{frantar2022optimal,
  title = {Optimal Brain Compression: A Framework for Accurate Post-Training Quantization and Pruning},
  author = {Frantar, Elias and Singh, Sidak Pal and Alistarh, Dan},
  year = {2022}, eprint = {2208.11580}, archivePrefix = {arXiv}
}"""
HINTON = """@misc{hinton2015distilling,
  title = {Distilling the Knowledge in a Neural Network},
  author = {Hinton, Geoffrey and Vinyals, Oriol and Dean, Jeff},
  year = {2015}, eprint = {1503.02531}, archivePrefix = {arXiv}
}"""
VYAS = """@misc{vyas2024soap,
  title = {SOAP: Improving and Stabilizing Shampoo using Adam},
  author = {Vyas, Nikhil and Morwani, Depen and Zhao, Rosie and Kwun, Mujin and Shapira, Itai and
            Brandfonbrener, David and Janson, Lucas and Kakade, Sham},
  year = {2024}, eprint = {2409.11321}, archivePrefix = {arXiv}
}"""
BOLYA = """@misc{bolya2022token,
  title = {Token Merging: Your ViT But Faster},
  author = {Bolya, Daniel and Fu, Cheng-Yang and Dai, Xiaoliang and Zhang, Peizhao and Feichtenhofer, Christoph and
            Hoffman, Judy},
  year = {2022}, eprint = {2210.09461}, archivePrefix = {arXiv}
}"""
WIGHTMAN = """@misc{wightman2019timm,
  title = {PyTorch Image Models},
  author = {Wightman, Ross},
  year = {2019}, publisher = {GitHub}, doi = {10.5281/zenodo.4414861},
  howpublished = {https://github.com/huggingface/pytorch-image-models}
}"""


def citations(settings: Mapping[str, Any], timm: bool = False, tokens: bool = False, layers: bool = True) -> list[str]:
    """BibTeX entries of the methods that a recipe (`CompressionConfig.to_dict()`) uses, each once.

    Args:
        timm: whether the model is one of timm.
        tokens: whether it merges tokens.
        layers: whether any layer was compressed.
    """
    settings = {**CompressionConfig().to_dict(), **renamed(settings)}  # an older recipe lacks what is newer
    metric, mlp, attention = settings["metric"], settings["mlp"], settings["attention"]
    prunes_mlp, prunes_heads = mlp in ("prune", "auto"), attention in ("prune", "joint")
    learned = settings["criterion"] == "gates" and (mlp in ("prune", "auto") or attention == "prune")
    compensation = settings["compensation"]
    distills = compensation in ("distill", "both")
    whitened = metric == "activation"
    of_layers = {
        AZIZI: compensation in ("residual", "both") or (whitened and settings["allocation"] == "greedy"),
        WANG: whitened and settings["allocation"] == "uniform",
        HSU: metric == "row_fisher",
        MARTENS: metric == "fisher",
        FRANTAR: settings["repair"] and (prunes_mlp or prunes_heads),
        KUMAR: mlp == "prune" and attention in ("low_rank", "joint"),
        ZHU: learned,
    }
    used = {
        **{entry: layers and applies for entry, applies in of_layers.items()},
        HINTON: distills,
        VYAS: distills and settings["optimizer"] == "preconditioned",
        BOLYA: tokens,
        WIGHTMAN: timm,
    }
    return [entry for entry, applies in used.items() if applies]
