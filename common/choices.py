"""Words that options choose from, apart from the code they steer, which needs torch: `--help` shows them at once."""

from typing import Literal

Alpha = Literal["white", "drop"]  # of transparent pixels: common/image_modes.py
Orientation = Literal["stored", "upright"]  # of photographs: common/images.py
Classes = Literal["folders", "one"]  # of a folder of images: data/image_folder.py
Resize = Literal["shorter_edge", "adm", "bilinear", "bilinear_aliased"]  # data/transforms.py
Precision = Literal["float32", "bfloat16", "float16"]  # of models that are used: modeling/layers/half.py
FeaturePrecision = Literal["float64", "float32", "bfloat16", "float16"]  # evaluator/inception.py
QualityName = Literal[
    "rounded", "maskbit", "seed_voken", "llamagen", "vector_quantization"
]  # of PSNR and SSIM
LeCamForm = Literal["mean", "logits"]  # modeling/losses/adversarial.py
