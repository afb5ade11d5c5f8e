from pathlib import Path

from setuptools import find_packages, setup

EXPORT = ["onnx", "onnxruntime", "onnxscript", "timm", "transformers>=5"]
VIDEO = ["av", "pillow", "torchvision"]
README = Path(__file__).parent / "README.md"

setup(
    name="amae-plugin",
    version="0.1.0",
    description="Masked autoencoders on audio spectrograms as a fairseq plugin",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="MIT",
    # Hydra looks for its plugins in the namespace hydra_plugins; the recipes are installed within the package.
    packages=[*find_packages(include=["amae_plugin", "amae_plugin.*"]), "amae_plugin.config", "hydra_plugins"],
    package_dir={"amae_plugin.config": "config", "hydra_plugins": "slurm/hydra_plugins"},
    package_data={
        "amae_plugin.config": ["**/*.yaml"],
        "amae_plugin.demo": ["*.css", "*.jinja"],
        "amae_plugin.interop": ["*.jinja"],
        "amae_plugin.visual": ["*.css", "*.jinja", "*.js"],
    },
    python_requires=">=3.11,<3.14",
    install_requires=[
        "torch>=2.6",  # before, reading a file of weights alone could run code of the file (CVE-2025-32434)
        "torchaudio",
        # fairseq's last release does not run on Python 3.11 and later; fairseq-fixed is its main branch made to.
        "fairseq-fixed",
        "argcomplete",
        "hydra-core",
        "jinja2",
        "matplotlib",
        "numpy",
        "omegaconf",
        "rapidfuzz",
        "safetensors",
        "scikit-learn",
        "scipy",
        "sentencepiece",
        "soundfile",
        "submitit",
        "tabulate",
        "tensorboardX",
        "tqdm",
        "typing_extensions",
        "wrapt",
    ],
    extras_require={
        "video": VIDEO,
        "demo": ["espeakng-loader"],
        "export": EXPORT,
        "dev": [
            "editdistance",
            "hypothesis",
            "mypy",
            "pytest",
            "pytest-timeout",
            "pytest-xdist",
            "ruff",
            *EXPORT,
            *VIDEO,
        ],
    },
    entry_points={"console_scripts": ["amae=amae_plugin.cli.main:main"]},
)
