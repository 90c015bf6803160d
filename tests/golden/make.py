"""The compact form of the reference numbers: `python -m tests.golden.make FOLDER` writes it from
the folder of the full ones; `unpack` gives files of the same names back."""

from __future__ import annotations

import io
import json
import lzma
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
from safetensors import safe_open
from safetensors.numpy import load, save, save_file

Array = npt.NDArray[Any]
HERE = Path(__file__).parent
NUMBERS, WAVEFORMS = "numbers.safetensors.xz", "waveforms.flac"
# Words of 4 bytes, most of which are noise
FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9, "lp": 2, "lc": 2, "pb": 2}]
VARIANTS = ("default_postln", "layernorm_preln")
RUNS = tuple(
    f"{v}_{p}_{m}"
    for v in VARIANTS
    for p in ("nopad", "pad")
    for m in ("eval", "train", "train_upd100000")
)
# What the tests read of each file: starts of names
RUN_TENSORS = (
    *("waveform", "mask_indices", "negative_indices", "gumbel_noise", "extractor_features"),
    *("transformer_features", "quantized", "projected_targets", "logits", "grad.", "gradnorm."),
)
FRACTIONS = (
    *("fairseq_static_overlap", "fairseq_normal_other3", "fairseq_no_overlap_minspace0"),
    *("fairseq_static_batch8_same_masks", "hf_static_batch8", "fairseq_static_pad500_batch2"),
)
W2VU_TENSORS = (
    *("initial.", "batch.", "out.", "after_forward.", "grad_d.", "grad_g.", "eval."),
    *("train.norms", "train.final.", "strong."),
)
W2VU_UPDATES = 20
KEPT: dict[str, tuple[str, ...]] = {
    **{f"{run}.safetensors": RUN_TENSORS for run in RUNS},
    **{
        f"{v}_state_{library}.safetensors": ("",) for v in VARIANTS for library in ("fairseq", "hf")
    },
    **{f"{v}_trajectory.safetensors": ("",) for v in VARIANTS},
    "mask_draws.safetensors": ("pad_ragged_ep",),
    "mask_fractions.safetensors": FRACTIONS,
    "transformer_lm.safetensors": ("",),
    **{
        f"w2vu_{v}.safetensors": W2VU_TENSORS
        + tuple(f"train.{u:02d}." for u in range(W2VU_UPDATES))
        for v in ("v1", "v2")
    },
    "w2vu_selection.safetensors": ("",),
}
TEXTS = ("init_stats.json", "mask_stats.json")
NOT_COMPARED = {"transformer_features_unmasked", "fairseq_static_overlap_T781"}
NUM_SAMPLES = 256  # of a gradient


def sample(gradient: Any) -> Any:
    """Elements at even distances, the first and the last among them (an array or a tensor)."""
    flat = gradient.reshape(-1)
    return flat[np.linspace(0, len(flat) - 1, NUM_SAMPLES).round().astype(np.int64)]


def shortened(name: str, tensor: Array) -> dict[str, Array]:
    """A large gradient as a sample and its largest value; anything else as it is."""
    if not name.startswith("grad.") or tensor.size <= NUM_SAMPLES:
        return {name: tensor}
    largest = np.array(np.abs(tensor).max())
    return {name.replace("grad.", "gradsample."): sample(tensor),
            name.replace("grad.", "gradmax."): largest}  # fmt: skip


def small(tensor: Array) -> Array:
    """Row numbers in 16 bits."""
    if tensor.dtype == np.int64 and tensor.size and np.abs(tensor).max() < 2**15:
        return tensor.astype(np.int16)
    return tensor


def pack(source: Path) -> dict[str, bytes]:
    """Name -> content of the compact files. Equal tensors are stored once."""
    unique: dict[tuple[Any, ...], str] = {}
    stored: dict[str, Array] = {}
    files: dict[str, Any] = {}
    waveforms = b""
    for file_name, starts in KEPT.items():
        with safe_open(source / file_name, "np") as file:
            metadata = file.metadata()
            tensors = {n: file.get_tensor(n) for n in sorted(file.keys()) if n.startswith(starts)}
        table = {}
        for full_name, whole in tensors.items():
            if full_name in NOT_COMPARED:
                continue
            if full_name == "waveforms_int16":
                buffer = io.BytesIO()
                soundfile.write(buffer, whole.reshape(-1), 16_000, "PCM_16", format="FLAC",
                                compression_level=1.0)  # fmt: skip
                assert waveforms in (b"", buffer.getvalue())  # the variants share them
                waveforms = buffer.getvalue()
                table[full_name] = [WAVEFORMS, str(whole.dtype), list(whole.shape)]
                continue
            for name, tensor in shortened(full_name, whole).items():
                less = np.ascontiguousarray(small(tensor))
                key = unique.setdefault(
                    (less.dtype.str, less.shape, less.tobytes()), f"{len(unique):04d}"
                )
                stored[key] = less
                table[name] = [key, str(tensor.dtype), list(tensor.shape)]
        files[file_name] = {"metadata": metadata, "tensors": table}
    texts = {name: (source / name).read_text() for name in TEXTS}
    content = save(stored, {"json": json.dumps({"files": files, "texts": texts}, sort_keys=True)})
    return {NUMBERS: lzma.compress(content, filters=FILTERS), WAVEFORMS: waveforms}


def unpack(output: Path) -> None:
    """Write the files of the full folder, with what `pack` has kept of them."""
    content = lzma.decompress((HERE / NUMBERS).read_bytes())
    size = int.from_bytes(content[:8], "little")
    index = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["json"])
    stored = load(content)
    stored[WAVEFORMS] = soundfile.read(HERE / WAVEFORMS, dtype="int16")[0]
    for file_name, entry in index["files"].items():
        tensors = {
            name: stored[key].astype(dtype).reshape(shape)
            for name, (key, dtype, shape) in entry["tensors"].items()
        }
        save_file(tensors, output / file_name, entry["metadata"])
    for file_name, text in index["texts"].items():
        (output / file_name).write_text(text)


if __name__ == "__main__":
    for name, content in pack(Path(sys.argv[1])).items():
        (HERE / name).write_bytes(content)
        print(f"{name}: {len(content):,} bytes")
