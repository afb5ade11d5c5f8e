"""Names that arguments take, written out here because reading them from their registries imports PyTorch.

A test compares each with its registry.
"""

CONTESTANTS = ("Audio-MAE", "MAE-AST", "SSAST", "M2D", "EAT", "CAV-MAE", "AST")
FRONT_ENDS = ("kaldi", "slaney")
WINDOWS = ("hanning", "povey")
MASKINGS = (
    *("random", "time", "frequency", "time_frequency", "random_batched"),
    *("chunk", "span", "cluster", "inverse_block"),
)
EMBEDDINGS = ("mean", "token_mean", "time_concat", "cls")
POOLINGS = ("mean", "cls", "avgtok", "avgcls", "token_mean", "time_concat")
PRECISIONS = ("fp32", "bf16")
EXPORTS = ("timm", "onnx", "hf")
MODALITIES = ("audio", "image")
PACKINGS = ("flac", "wav")
PUBLISHED = {
    "audio_mae": "Audio-MAE, pretrained",
    "audio_mae_finetuned": "Audio-MAE, fine-tuned",
    "image_mae": "MAE of images, as the start of an Audio-MAE",
    "mae_ast": "MAE-AST, pretrained",
    "ssast": "SSAST, pretrained",
    "ast": "AST, or SSAST fine-tuned",
    "image_vit": "ViT or DeiT of images, as the start of an SSAST",
    "m2d": "M2D, pretrained",
    "m2d_finetuned": "M2D, fine-tuned",
    "eat": "EAT, pretrained",
    "eat_finetuned": "EAT, fine-tuned",
    "cav_mae": "CAV-MAE, pretrained",
    "cav_mae_finetuned": "CAV-MAE, fine-tuned",
}
"""Kinds of published files, and what each is."""
