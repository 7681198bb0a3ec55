"""One frozen row per method: what exists, under which name, and where it lives.

A row names its class as text, so that listing the methods and printing help never imports torch.
A method's dataclass is its constructor, its command-line flags, its TOML table and its recorded
spec; :func:`build` and :func:`spec_of` turn one into the other.

A spec on the command line is one word: ``name,key=value,key=value``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from excise.errors import SpecError, nearest

__all__ = [
    "KINDS",
    "METHODS",
    "STRICT",
    "Kind",
    "Method",
    "build",
    "contents_of",
    "find",
    "parse",
    "rows",
    "spec_error",
    "spec_of",
]

if TYPE_CHECKING:
    from pydantic import ConfigDict, ValidationError

#: How every method's dataclass is made: an unknown field fails, values out of range fail, and the
#: text under a field is its help, on the command line and in the documentation.
STRICT: ConfigDict = {
    "extra": "forbid",
    "arbitrary_types_allowed": True,
    "use_attribute_docstrings": True,
}

Kind = Literal["attack", "trigger", "defense", "inverter", "scanner", "detector", "model", "data"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Maturity = Literal["stable", "beta", "experimental"]


@dataclass(frozen=True)
class Method:
    """One row of the registry.

    Args:
        kind: the room it lives in.
        name: what a person types.
        title: what it is, in a few words.
        paper: authors, venue and year; empty for what no paper describes.
        maturity: ``stable`` once measured against its paper, ``beta`` before.
        target: ``"module:attribute"``, imported only when used. Empty for a row that describes
            a family of names (``torchvision:NAME``).
        lowers_asr: for a defense: whether the contract suite may demand that it lowers ASR on a
            tiny planted network, or, as text, why it may not.
        version: raised when the method's results change, so that a sweep runs it anew.
    """

    kind: Kind
    name: str
    title: str
    paper: str
    maturity: Maturity
    target: str
    lowers_asr: bool | str = False
    version: int = 1

    def load(self) -> Any:
        """Import and return the class or function behind the row."""
        module, _, attribute = self.target.partition(":")
        return getattr(importlib.import_module(module), attribute)

    def presets(self) -> dict[str, Mapping[str, Any]]:
        """Return the method's named settings.

        The defaults of a defense or a scanner are the published ones, whether or not it has others.
        """
        own: Mapping[str, Mapping[str, Any]] = getattr(self.load(), "PRESETS", {})
        return {**({"published": {}} if self.kind in ("defense", "scanner") else {}), **own}

    def fields(self) -> list[dict[str, str]]:
        """Return name, type, default and help of every field of the method's dataclass."""
        method = self.load()
        # pydantic reads the text under a field where the field is defined, and loses it below.
        described = {
            name: info.description
            for parent in reversed(method.__mro__)
            for name, info in vars(parent).get("__pydantic_fields__", {}).items()
            if info.description
        }
        return [
            {
                "name": field.name,
                "type": str(field.type),
                "default": "required" if field.default is MISSING else repr(field.default),
                "help": described.get(field.name, ""),
            }
            for field in dataclasses.fields(method)
            if field.init
        ]


METHODS: tuple[Method, ...] = (
    Method(
        "attack", "none", "no poison: the clean twin",
        "", "stable", "excise.attacks.none:NoAttack",
    ),
    Method(
        "attack", "badnets", "a patch that replaces pixels",
        "Gu, Dolan-Gavitt, Garg: BadNets, IEEE Access 2019 (arXiv 1708.06733)",
        "stable", "excise.attacks.badnets:BadNets",
    ),
    Method(
        "attack", "blended", "a picture blended over the whole image",
        "Chen, Liu, Li, Lu, Song: Targeted Backdoor Attacks, 2017 (arXiv 1712.05526)",
        "stable", "excise.attacks.blended:Blended",
    ),
    Method(
        "attack", "sig", "vertical stripes on the target class, labels kept (clean-label)",
        "Barni, Kallas, Tondi: A New Backdoor Attack in CNNs by Training Set Corruption without "
        "Label Poisoning, ICIP 2019 (arXiv 1902.11237)",
        "beta", "excise.attacks.sig:Sig",
    ),
    Method(
        "attack", "lf", "a smooth perturbation of low frequencies, learned on a clean network",
        "Zeng, Park, Mao, Jia: Rethinking the Backdoor Attacks' Triggers: A Frequency "
        "Perspective, ICCV 2021 (arXiv 2104.03413)",
        "beta", "excise.attacks.lf:LF",
    ),
    Method(
        "attack", "label-consistent", "images made hard, with corners, labels kept (clean-label)",
        "Turner, Tsipras, Madry: Label-Consistent Backdoor Attacks, 2019 (arXiv 1912.02771)",
        "beta", "excise.attacks.label_consistent:LabelConsistent",
    ),
    Method(
        "attack", "trojannn", "an added patch made to drive a few neurons of a clean network",
        "Liu, Ma, Aafer, Lee, Zhai, Wang, Zhang: Trojaning Attack on Neural Networks, NDSS 2018",
        "beta", "excise.attacks.trojannn:TrojanNN",
    ),
    Method(
        "attack", "ftrojan", "two frequencies of the color channels raised",
        "Wang, Yao, Xu, An, Tong, Wang: An Invisible Black-Box Backdoor Attack Through Frequency "
        "Domain, ECCV 2022 (arXiv 2111.10991)",
        "beta", "excise.attacks.ftrojan:FTrojan",
    ),
    Method(
        "attack", "bpp", "few gray levels a channel, against misplaced errors (BppAttack)",
        "Wang, Zhai, Ma: BppAttack, CVPR 2022 (arXiv 2205.13383)",
        "beta", "excise.attacks.bpp:Bpp",
    ),
    Method(
        "attack", "wanet", "a smooth warp, against noisy ones",
        "Nguyen, Tran: WaNet, ICLR 2021 (arXiv 2102.10369)",
        "beta", "excise.attacks.wanet:WaNet",
    ),
    Method(
        "attack", "input-aware", "a generated pattern that works on its own image alone",
        "Nguyen, Tran: Input-Aware Dynamic Backdoor Attack, NeurIPS 2020 (arXiv 2010.08138)",
        "beta", "excise.attacks.input_aware:InputAware",
    ),
    Method(
        "attack", "lira", "generated noise too faint to see, learned with the network",
        "Doan, Lao, Zhao, Li: LIRA, ICCV 2021",
        "beta", "excise.attacks.lira:Lira",
    ),
    Method(
        "attack", "ssba", "a hidden secret, written into every image in its own way",
        "Li, Li, Wu, Li, He, Lyu: Invisible Backdoor Attack with Sample-Specific Triggers, ICCV "
        "2021 (arXiv 2012.03816)",
        "beta", "excise.attacks.ssba:SSBA",
    ),
    Method(
        "attack", "adap-blend", "half of a faint picture's pieces, with cover images",
        "Qi, Xie, Li, Mahloujifar, Mittal: Revisiting the Assumption of Latent Separability for "
        "Backdoor Defenses, ICLR 2023",
        "beta", "excise.attacks.adap_blend:AdapBlend",
    ),
    Method(
        "attack", "adap-patch", "one of four faint patches, with cover images",
        "Qi, Xie, Li, Mahloujifar, Mittal: Revisiting the Assumption of Latent Separability for "
        "Backdoor Defenses, ICLR 2023",
        "beta", "excise.attacks.adap_patch:AdapPatch",
    ),
    Method(
        "trigger", "patch", "pixels replaced where a mask is set (BadNets)",
        "Gu, Dolan-Gavitt, Garg: BadNets, IEEE Access 2019 (arXiv 1708.06733)",
        "stable", "excise.triggers.patch:Patch",
    ),
    Method(
        "trigger", "blend", "a picture mixed into the whole image (Blended)",
        "Chen, Liu, Li, Lu, Song: Targeted Backdoor Attacks, 2017 (arXiv 1712.05526)",
        "stable", "excise.triggers.blend:Blend",
    ),
    Method(
        "trigger", "additive", "one perturbation added to every image (LF, TrojanNN, corners)",
        "Zeng, Park, Mao, Jia: Rethinking the Backdoor Attacks' Triggers: A Frequency "
        "Perspective, ICCV 2021 (arXiv 2104.03413)",
        "beta", "excise.triggers.additive:Additive",
    ),
    Method(
        "trigger", "sinusoid", "vertical stripes added (SIG)",
        "Barni, Kallas, Tondi: A New Backdoor Attack in CNNs by Training Set Corruption without "
        "Label Poisoning, ICIP 2019 (arXiv 1902.11237)",
        "beta", "excise.triggers.sinusoid:Sinusoid",
    ),
    Method(
        "trigger", "ftrojan", "two frequencies of the color channels raised (FTrojan)",
        "Wang, Yao, Xu, An, Tong, Wang: An Invisible Black-Box Backdoor Attack Through Frequency "
        "Domain, ECCV 2022 (arXiv 2111.10991)",
        "beta", "excise.triggers.ftrojan:FTrojan",
    ),
    Method(
        "trigger", "quantize", "few gray levels a channel, perhaps dithered (BppAttack)",
        "Wang, Zhai, Ma: BppAttack, CVPR 2022 (arXiv 2205.13383)",
        "beta", "excise.triggers.quantize:Quantize",
    ),
    Method(
        "trigger", "warp", "pixels taken from a little beside their place (WaNet)",
        "Nguyen, Tran: WaNet, ICLR 2021 (arXiv 2102.10369)",
        "beta", "excise.triggers.warp:Warp",
    ),
    Method(
        "trigger", "input-aware", "a pattern of each image's own, at its own few pixels",
        "Nguyen, Tran: Input-Aware Dynamic Backdoor Attack, NeurIPS 2020 (arXiv 2010.08138)",
        "beta", "excise.triggers.input_aware:InputAwarePattern",
    ),
    Method(
        "trigger", "ssba", "a secret hidden by an encoder, in each image in its own way",
        "Li, Li, Wu, Li, He, Lyu: Invisible Backdoor Attack with Sample-Specific Triggers, ICCV "
        "2021 (arXiv 2012.03816)",
        "beta", "excise.triggers.ssba:Ssba",
    ),
    Method(
        "trigger", "residual-generator", "faint noise that a network draws for each image (LIRA)",
        "Doan, Lao, Zhao, Li: LIRA, ICCV 2021",
        "beta", "excise.triggers.residual_generator:ResidualGenerator",
    ),
    Method(
        "trigger", "layers", "pictures laid on one after the other, each with its opacity",
        "Qi, Xie, Li, Mahloujifar, Mittal: Revisiting the Assumption of Latent Separability for "
        "Backdoor Defenses, ICLR 2023",
        "beta", "excise.triggers.layers:Layers",
    ),
    Method(
        "defense", "none", "no defense: the network as it was given",
        "", "stable", "excise.defenses.none:NoDefense",
        lowers_asr="It changes nothing; it is what the others are compared with.",
    ),
    Method(
        "defense", "grad-prune", "prunes the filters an unlearning gradient points at",
        "Dunnett, Arablouei, Miller, Dedeoglu, Jurdak: Unlearning Backdoor Attacks through "
        "Gradient-Based Model Pruning, DSN-W 2024 (arXiv 2405.03918)",
        "stable", "excise.defenses.grad_prune:GradPrune", lowers_asr=True,
    ),
    Method(
        "defense", "soft-prune", "weakens kernels, by the gradient of unlearning; ours",
        "", "experimental", "excise.defenses.soft_prune:SoftPrune", lowers_asr=True, version=3,
    ),
    Method(
        "defense", "clp", "prunes the channels whose Lipschitz bound stands out; needs no image",
        "Zheng, Tang, Li, Liu: Data-free Backdoor Removal based on Channel Lipschitzness, ECCV "
        "2022 (arXiv 2208.03111)",
        "beta", "excise.defenses.clp:CLP",
        lowers_asr="A layer of fewer than 11 channels has none above u = 3: on the planted "
        "network, whose first layers have 8, all of the backdoor stays.",
    ),
    Method(
        "defense", "bnp", "prunes the channels whose batch-norm statistics do not fit clean images",
        "Zheng, Tang, Li, Liu: Pre-activation Distributions Expose Backdoor Neurons, NeurIPS 2022",
        "beta", "excise.defenses.bnp:BNP",
        lowers_asr="It lowers ASR, but at the published u = 3 half of the planted backdoor stays.",
    ),
    Method(
        "defense", "anp", "prunes the channels that a small change of scales turns against labels",
        "Wu, Wang: Adversarial Neuron Pruning Purifies Backdoored Deep Models, NeurIPS 2021 "
        "(arXiv 2110.14430)",
        "beta", "excise.defenses.anp:ANP",
        lowers_asr="On the planted network ASR falls as far as asked, but two fifths of the "
        "triggered images are read right, where half is asked.",
    ),
    Method(
        "defense", "rnp", "unlearns clean images, recovers masks, prunes what they give up",
        "Li, Lyu, Ma, Koren, Lyu, Li, Jiang: Reconstructive Neuron Pruning, ICML "
        "2023 (arXiv 2305.14876)",
        "beta", "excise.defenses.rnp:RNP",
        lowers_asr="On the planted network its masks fall to 0 in channels that accuracy needs, so "
        "that its rule prunes none.",
    ),
    Method(
        "defense", "nft", "tunes one mask a channel on mixed images",
        "Karim, Al Arafat, Khalid, Guo, Rahnavard: Augmented Neural Fine-Tuning for Efficient "
        "Backdoor Purification, ECCV 2024 (arXiv 2407.10052)",
        "beta", "excise.defenses.nft:NFT",
        lowers_asr="On the planted network the published setting leaves four fifths of the "
        "backdoor.",
    ),
    Method(
        "defense", "ft", "fine-tunes on clean images: the baseline",
        "Wu, Chen, Zhang, Zhu, Wei, Yuan, Shen: BackdoorBench, NeurIPS 2022 (arXiv 2206.12654)",
        "beta", "excise.defenses.ft:FineTuning",
        lowers_asr="A baseline: on the planted network the published setting leaves half of the "
        "backdoor.",
    ),
    Method(
        "defense", "ft-sam", "fine-tunes by the gradient at the worst weights nearby (FT-SAM)",
        "Zhu, Wei, Shen, Fan, Wu: Enhancing Fine-Tuning Based Backdoor Defense with "
        "Sharpness-Aware Minimization, ICCV 2023 (arXiv 2304.11823)",
        "beta", "excise.defenses.ft_sam:FTSAM",
        lowers_asr="On the planted network the published setting takes two steps a pass, and "
        "leaves a fifth of the backdoor.",
    ),
    Method(
        "defense", "fst", "a new classifier, tuned away from the old one (Feature Shift Tuning)",
        "Min, Qin, Shen, Cheng: Towards Stable Backdoor Purification through Feature Shift "
        "Tuning, NeurIPS 2023 (arXiv 2310.01875)",
        "beta", "excise.defenses.fst:FST",
        lowers_asr="On the planted network ASR falls, but only a quarter of the triggered images "
        "is read right.",
    ),
    Method(
        "defense", "nad", "a fine-tuned teacher shows where to attend (NAD)",
        "Li, Lyu, Koren, Lyu, Li, Ma: Neural Attention Distillation, ICLR 2021 (arXiv 2101.05930)",
        "beta", "excise.defenses.nad:NAD",
        lowers_asr="On the planted network the published rate, 0.1, costs a third of the accuracy; "
        "ASR and RA are within the limits.",
    ),
    Method(
        "defense", "pbe", "fine-tunes on adversarial and clean images in turn (PBE)",
        "Mu, Niu, Wang, Wang, Miao, Jin, Hua: Progressive Backdoor Erasing via Connecting "
        "Backdoor and Adversarial Attacks, CVPR 2023 (arXiv 2202.06312)",
        "beta", "excise.defenses.pbe:PBE",
        lowers_asr="On the planted network the published setting leaves nearly all of the "
        "backdoor.",
    ),
    Method(
        "defense", "bti-dbf", "inverts the trigger from features no clean image needs, unlearns it",
        "Xu, Huang, Li, Qin, Ren: Towards Reliable and Efficient Backdoor Trigger Inversion via "
        "Decoupling Benign Features, ICLR 2024",
        "beta", "excise.defenses.bti_dbf:BTIDBFU",
        lowers_asr="Its mask and its generator need hundreds of steps; in the few that a test can "
        "wait for, ASR on the tiny network falls by half.",
    ),
    Method(
        "defense", "npd", "a small layer plugged in that filters triggers out (Neural Polarizer)",
        "Zhu, Wei, Zha, Wu: Neural Polarizer: A Lightweight and Effective Backdoor Defense via "
        "Purifying Poisoned Features, NeurIPS 2023 (arXiv 2306.16697)",
        "beta", "excise.defenses.npd:NPD",
        lowers_asr="The layer that the authors name stands in one branch of a residual block; on "
        "the tiny network the shortcut carries the trigger past it.",
    ),
    Method(
        "defense", "sau", "unlearns adversarial examples shared with the backdoored network (SAU)",
        "Wei, Zhang, Zha, Wu: Shared Adversarial Unlearning, NeurIPS 2023 (arXiv 2307.10562)",
        "beta", "excise.defenses.sau:SAU", lowers_asr=True,
    ),
    Method(
        "defense", "mcr", "a point of a curve to a fine-tuned copy (mode connectivity repair)",
        "Zhao, Chen, Das, Ramamurthy, Lin: Bridging Mode Connectivity in Loss Landscapes and "
        "Adversarial Robustness, ICLR 2020 (arXiv 2005.00060)",
        "beta", "excise.defenses.mcr:MCR",
        lowers_asr="The second end of its curve is the first, fine-tuned, not another network as "
        "in the paper; on the planted network the published setting leaves an ASR of about .3.",
    ),
    Method(
        "defense", "tsbd", "zeroes the weights unlearning moves most, then tunes gently (TSBD)",
        "Lin, Liu, Wei, Li, Xiong: Unveiling and Mitigating Backdoor Vulnerabilities based on "
        "Unlearning Weight Changes and Backdoor Activeness, NeurIPS 2024 (arXiv 2405.20291)",
        "beta", "excise.defenses.tsbd:TSBD", lowers_asr=True,
    ),
    Method(
        "defense", "ulrl", "resets the outputs that unlearning moves most, and relearns (ULRL)",
        "Min, Pham, Sun: Unified Neural Backdoor Removal with Only Few Clean Samples through "
        "Unlearning and Relearning, 2024 (arXiv 2405.14781)",
        "beta", "excise.defenses.ulrl:ULRL",
        lowers_asr="It lowers ASR, but mends the classifier, not the features: on the planted "
        "network most triggered images are then called neither the target nor their own class.",
    ),
    Method(
        "defense", "d3", "tunes as far from the given classifier as it can (D3)",
        "Wei, Liu, Zha: Backdoor Mitigation by Distance-Driven Detoxification, ICCV 2025 "
        "(arXiv 2411.09585)",
        "beta", "excise.defenses.d3:D3",
        lowers_asr="It lowers ASR, but moves the classifier more than the features: on the planted "
        "network most triggered images are then called neither the target nor their own class.",
    ),
    Method(
        "defense", "fp", "cuts the features that clean images hardly use (Fine-Pruning)",
        "Liu, Dolan-Gavitt, Garg: Fine-Pruning, RAID 2018 (arXiv 1805.12185)",
        "beta", "excise.defenses.fp:FP",
        lowers_asr="It lowers ASR, but cuts what clean images do not use and unlearns nothing: on "
        "the planted network, whose backdoor shares features with the classes, over half of it "
        "stays (ASR 0.63).",
    ),
    Method(
        "defense", "awm", "shrinks the weights an adversarial perturbation makes use of (AWM)",
        "Chai, Chen: One-shot Neural Backdoor Erasing via Adversarial Weight Masking, NeurIPS 2022 "
        "(arXiv 2207.04497)",
        "beta", "excise.defenses.awm:AWM", lowers_asr=True,
    ),
    Method(
        "defense", "i-bau", "unlearns a universal perturbation by implicit gradients (I-BAU)",
        "Zeng, Chen, Park, Mao, Jin, Jia: Adversarial Unlearning of Backdoors via Implicit "
        "Hypergradient, ICLR 2022 (arXiv 2110.03735)",
        "beta", "excise.defenses.i_bau:IBAU", lowers_asr=True,
    ),
    Method(
        "defense", "fmp", "cuts the filters whose moved maps move the prediction most (FMP)",
        "Huang, Bu: Adversarial Feature Map Pruning for Backdoor, ICLR 2024 (arXiv 2307.11565)",
        "beta", "excise.defenses.fmp:FMP",
        lowers_asr="It lowers ASR, but cuts one filter in 64, few of a network as narrow as the "
        "planted one, and tunes for ten epochs: over half of the backdoor stays (ASR 0.71).",
    ),
    Method(
        "defense", "ims", "masks that split the backdoor from the rest of the network (IMS)",
        "Dunnett, Arablouei, Miller, Dedeoglu, Jurdak: Backdoor Mitigation via Invertible Pruning "
        "Masks, NeurIPS 2025 (arXiv 2509.15497)",
        "beta", "excise.defenses.ims:IMS",
        lowers_asr="Its perturbations reach 0.02 of a pixel's range, at which the planted network "
        "reads digits as before, so that the inverse network never shows the backdoor.",
    ),
    Method(
        "defense", "neural-cleanse", "finds the smallest trigger and unlearns it",
        "Wang, Yao, Shan, Li, Viswanath, Zheng, Zhao: Neural Cleanse, S&P 2019",
        "beta", "excise.defenses.neural_cleanse:NeuralCleanseUnlearning", lowers_asr=True,
    ),
    Method(
        "defense", "mm-bm", "clamps activations as low as clean answers allow (MM-BM)",
        "Wang, Xiang, Miller, Kesidis: MM-BD, S&P 2024 (arXiv 2205.06900)",
        "beta", "excise.defenses.mm_bm:MMBM",
        lowers_asr="On the tiny network, bounds that keep the clean answers let a third of the "
        "triggered images through.",
    ),
    Method(
        "inverter", "oracle", "is told the true trigger, as the paper assumes",
        "Dunnett, Arablouei, Miller, Dedeoglu, Jurdak, DSN-W 2024 (arXiv 2405.03918)",
        "stable", "excise.inversion.oracle:Oracle",
    ),
    Method(
        "inverter", "neural-cleanse", "the smallest patch that sends all images to one class",
        "Wang, Yao, Shan, Li, Viswanath, Zheng, Zhao: Neural Cleanse, S&P 2019",
        "beta", "excise.inversion.neural_cleanse:NeuralCleanse",
    ),
    Method(
        "inverter", "bti-dbf", "a generator that changes features no clean image needs (BTI-DBF)",
        "Xu, Huang, Li, Qin, Ren: Towards Reliable and Efficient Backdoor Trigger Inversion via "
        "Decoupling Benign Features, ICLR 2024",
        "beta", "excise.inversion.bti_dbf:BTIDBF",
    ),
    Method(
        "inverter", "universal", "the smallest pattern to add that sends all images to one class",
        "", "experimental", "excise.inversion.universal:Universal",
    ),
    Method(
        "inverter", "smooth", "the smallest smooth pattern to add that sends all images to a class",
        "", "experimental", "excise.inversion.smooth:Smooth",
    ),
    Method(
        "inverter", "spectral", "the fewest, faintest waves to add that send all images to a class",
        "", "experimental", "excise.inversion.spectral:Spectral",
    ),
    Method(
        "inverter", "spatial", "the smallest smooth warp that sends all images to one class",
        "", "experimental", "excise.inversion.spatial:Spatial",
    ),
    Method(
        "inverter", "sample-specific", "each image's own pixels, towards the class margins tell of",
        "", "experimental", "excise.inversion.sample_specific:SampleSpecific",
    ),
    Method(
        "inverter", "combined", "triggers of the class that five tests suspect most",
        "", "experimental", "excise.inversion.combined:Combined", version=2,
    ),
    Method(
        "scanner", "combined", "five tests together, calibrated on clean networks",
        "", "experimental", "excise.detection.combined:CombinedScan",
    ),
    Method(
        "scanner", "neural-cleanse", "is some class reached by a far smaller patch than others?",
        "Wang, Yao, Shan, Li, Viswanath, Zheng, Zhao: Neural Cleanse, S&P 2019",
        "beta", "excise.detection.neural_cleanse:NeuralCleanseScan",
    ),
    Method(
        "scanner", "mm-bd", "is some class's largest margin out of line? Needs no images (MM-BD)",
        "Wang, Xiang, Miller, Kesidis: MM-BD, S&P 2024 (arXiv 2205.06900)",
        "beta", "excise.detection.mm_bd:MMBD",
    ),
    Method(
        "detector", "frequency", "which images carry a trigger, by their cosine transform",
        "Zeng, Park, Mao, Jia: Rethinking the Backdoor Attacks' Triggers: A Frequency "
        "Perspective, ICCV 2021 (arXiv 2104.03413)",
        "beta", "excise.detection.frequency:Frequency",
    ),
    Method(
        "model", "excise:preactresnet18", "pre-activation ResNet-18 for small images; width=64",
        "He, Zhang, Ren, Sun: Identity Mappings, ECCV 2016 (arXiv 1603.05027)",
        "stable", "excise.models.preact_resnet:preactresnet18",
    ),
    Method(
        "model", "excise:vgg19_bn", "VGG-19 with batch norm for 32×32 images; width=64",
        "Simonyan, Zisserman: Very Deep Convolutional Networks, ICLR 2015 (arXiv 1409.1556)",
        "stable", "excise.models.vgg:vgg19_bn",
    ),
    Method("model", "torchvision:NAME", "any classifier of torchvision.models", "", "stable", ""),
    Method("model", "timm:NAME", "any classifier of timm", "", "stable", ""),
    Method(
        "model", "package.module:factory", "your own function; runs that package's code",
        "", "stable", "",
    ),
    Method(
        "data", "digits", "1,797 handwritten digits, 8×8 gray, bundled with scikit-learn",
        "Alpaydin, Kaynak: Optical Recognition of Handwritten Digits, UCI 1998",
        "stable", "excise.data.sources:digits",
    ),
    Method(
        "data", "cifar10", "60,000 pictures, 32×32, 10 classes; parquet under EXCISE_DATA",
        "Krizhevsky: Learning Multiple Layers of Features from Tiny Images, 2009",
        "stable", "excise.data.sources:cifar10",
    ),
    Method(
        "data", "gtsrb", "traffic signs, 32×32, 43 classes; parquet under EXCISE_DATA",
        "Stallkamp, Schlipsing, Salmen, Igel: Man vs. computer, Neural Networks 2012",
        "stable", "excise.data.sources:gtsrb",
    ),
    Method(
        "data", "parquet:DIR", "parquet files of encoded images and labels, as hubs lay them out",
        "", "stable", "",
    ),
    Method("data", "hub:OWNER/NAME", "a Hugging Face data set in that layout", "", "beta", ""),
    Method("data", "torchvision:NAME", "a torchvision data set, downloaded", "", "beta", ""),
    Method("data", "DIR", "a folder with one subfolder per class", "", "stable", ""),
)  # fmt: skip


def rows(kind: Kind) -> tuple[Method, ...]:
    """Return every row of one kind, in the order of the table."""
    return tuple(row for row in METHODS if row.kind == kind)


def find(kind: Kind, name: str) -> Method:
    """Return the row called ``name``.

    Raises:
        SpecError: there is none; the message offers the nearest.
    """
    named = {row.name: row for row in rows(kind) if row.target}
    if name not in named:
        raise SpecError(
            f"the name of {'an' if kind[0] in 'aio' else 'a'} {kind}",
            got=repr(name),
            remedy=nearest(name, named),
        )
    return named[name]


def parse(word: str) -> tuple[str, dict[str, str]]:
    """Split ``"name,key=value,key=value"`` into the name and its fields.

    Raises:
        SpecError: a part after the name has no ``=``, or a key stands twice.
    """
    name, *parts = word.split(",")
    fields: dict[str, str] = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if not equals or not key.strip() or key.strip() in fields:
            raise SpecError(
                "name,key=value,key=value with every key once",
                got=repr(word),
                remedy="Write for example: badnets,size=3,target=0",
            )
        fields[key.strip()] = value.strip()
    return name.strip(), fields


def build(kind: Kind, name: str, fields: Mapping[str, Any] | None = None) -> Any:
    """Return the method called ``name`` made from ``fields``; values may be text.

    Raises:
        SpecError: an unknown name or key, or a value out of range.
    """
    from pydantic import ValidationError

    target = find(kind, name).load()
    known = [f.name for f in dataclasses.fields(target) if f.init]
    for key in fields or {}:
        if key not in known:
            raise SpecError(f"a field of {name}", got=repr(key), remedy=nearest(key, known))
    try:
        return target(**(fields or {}))
    except ValidationError as error:
        raise spec_error(name, error) from error


def spec_error(name: str, error: ValidationError) -> SpecError:
    """Return a pydantic ``ValidationError`` as the error Excise shows: expected, got, remedy."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "its fields"
    if first["type"] == "missing":
        return SpecError(
            f"a value for the field {where} of {name}, which has no default",
            got="none",
            remedy=f"Give it: {where} = …",
        )
    expected = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return SpecError(
        f"{where} of {name} to be {expected}" if first["type"] != "value_error" else expected,
        got=repr(first["input"]),
        remedy=f"See `excise list --json` for the fields of {name}.",
    )


def spec_of(kind: Kind, method: Any) -> dict[str, Any]:
    """Return the recorded form of a method: its name and every field, as plain JSON values.

    A method that no row knows (a user's own class) is recorded by its class's full name. A field
    marked ``told`` (the trigger an oracle was given) is left out: the name says it was told.
    """
    return {"name": _name_of(kind, method), **_plain_fields(method)}


def contents_of(method: Any) -> dict[str, str]:
    """Return the hash of what is in each file that a field of ``method`` names, by field.

    A path says little: another picture may lie there tomorrow. What cannot be read is left to
    whoever needs it.
    """
    found = {}
    for field in dataclasses.fields(method):
        path = getattr(method, field.name)
        if isinstance(path, Path) and path.is_file():
            with contextlib.suppress(OSError):
                found[field.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _name_of(kind: Kind, method: Any) -> str:
    for row in rows(kind):
        if row.target and row.load() is type(method):
            return row.name
    return f"{type(method).__module__}:{type(method).__qualname__}"


def _plain_fields(method: Any) -> dict[str, Any]:
    if not dataclasses.is_dataclass(method):
        return {}
    return {
        field.name: _plain(field.name, getattr(method, field.name))
        for field in dataclasses.fields(method)
        if field.init and not field.metadata.get("told")
    }


def _plain(name: str, value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list):
        return [_plain(name, item) for item in value]
    # A field that holds a method of another kind carries that kind's name: GradPrune.inverter.
    return spec_of(name, value) if name in KINDS else str(value)
