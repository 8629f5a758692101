"""A pruned network as a file for elsewhere, checked against the network itself."""

import contextlib
import importlib.util
import io
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gnnrl_ray.data import Split
from gnnrl_ray.data.loader import Loader, each_of, forward, shapes_of
from gnnrl_ray.data.records import has_records, mapped
from gnnrl_ray.errors import DataError, GnnrlError, InputError
from gnnrl_ray.pruning.removal import standing_alone
from gnnrl_ray.storage import storage_of
from gnnrl_ray.tracing.proxies import tensors_in

_CALIBRATION = 100  # images that ranges for whole numbers are taken from
_BATCH = 250
_OPSET = 18

# A file's network: images as they are given to the network -> its tensors, in order.
Loaded = Callable[..., list[Tensor]]


class ExportError(GnnrlError, RuntimeError):
    """A network that a format has no words for, or that came out as another one."""


@dataclass(frozen=True)
class Exported:
    """What has been written.

    Attributes:
        path: of the file.
        images: how many the network and the file have been asked about.
        agree: for how many both name the same class; of other outputs, are nearly equal.
        difference: the largest between their outputs, as a share of the largest output.
        accuracy: of the file, in [0, 1], where outputs are classes.
    """

    path: str
    images: int
    agree: int
    difference: float
    accuracy: float | None


def export(
    network: nn.Module,
    split: Split | Loader,
    path: Path | str,
    *,
    kind: str | None = None,
    calibration: Split | Loader | None = None,
) -> Exported:
    """Write ``network`` to ``path``, load it from there, and compare on all of ``split``.

    Args:
        network: pruned, in evaluation mode, on the CPU.
        split: images as the network is given them.
        path: of the file, or a URI.
        kind: one of ``FORMATS``; default: as the end of ``path`` says. ``onnx``: with any
            batch size, for onnxruntime and others; ``pt2``: for ``torch.export.load``;
            ``torch``: for ``torch.load``, a graph that needs torch alone.
        calibration: training images; with them, convolutions and linear layers are in
            8-bit whole numbers, by onnxruntime's quantisation after training, with ranges
            from some of them; of ``onnx`` only.

    Raises:
        InputError: an unknown format; a package that it needs is not there.
        ExportError: the network cannot be written so, or came out as another one.
    """
    kind = kind or {end: kind for kind, end in ENDS.items()}.get(Path(path).suffix)
    if kind not in FORMATS:
        raise InputError(
            f"{path} ends in none of .onnx, .pt2, .pt; say --format {' or '.join(FORMATS)}."
        )
    if calibration is not None:
        check_int8(kind)
    network = network.eval()
    first = next(split.batches(2))[0]
    shapes = shapes_of(split.input_shape)
    if any(len(image) < 2 for image in each_of(first)):
        raise DataError("the format has to be tried on batches of two images or more.")
    images = tuple(image[:2].contiguous() for image in each_of(first))
    write, load = FORMATS[kind]
    try:
        with _quiet(), torch.no_grad():
            made = network(*mapped(torch.clone, images))
            # Of classes that only its code knows, files hold nothing.
            written = standing_alone(network, shapes) if has_records(made) else network
            content = write(written, images)
            if calibration is not None:
                content = _quantised(content, calibration)
            loaded = load(content)
    except (GnnrlError, OSError):
        raise
    except Exception as error:
        raise ExportError(
            f"--format {kind}: the network cannot be written so "
            f"({type(error).__name__}: {_first_line(error)}); try another --format."
        ) from error
    found = _compared(network, loaded, split, str(path))
    if calibration is None and found.difference > 1e-3:
        raise ExportError(
            f"--format {kind}: the file returns something else than the network, by "
            f"{found.difference:.1%} of its largest output on images of {shapes}; it has "
            "not been written. Try another --format."
        )
    storage, name = storage_of(path)
    storage.write(name, content)
    return found


def check_int8(kind: str) -> None:
    """Raise an ``InputError`` if a format has no 8-bit whole numbers."""
    if kind != "onnx":
        raise InputError(f"--int8 is of --format onnx, not of {kind}.")


def _compared(
    network: nn.Module, loaded: Loaded, split: Split | Loader, path: str
) -> Exported:
    total = agree = right = 0
    difference, classes = 0.0, True
    with torch.inference_mode():
        for images, labels in split.batches(_BATCH):
            # Either may change its images in place.
            ours = tensors_in(forward(network, mapped(torch.clone, images)))
            theirs = loaded(*each_of(mapped(torch.clone, images)))
            for a, b in zip(ours, theirs, strict=True):
                apart = float((a - b).abs().max() / a.abs().max().clamp(min=1e-12))
                difference = max(difference, apart)
            total += len(ours[0])
            classes &= ours[0].dim() == 2 and isinstance(labels, Tensor)
            classes = classes and labels.shape == ours[0].shape[:1]
            if classes:
                named = theirs[0].argmax(1)
                agree += int((named == ours[0].argmax(1)).sum())
                right += int((named == labels).sum())
            else:
                near = (ours[0] - theirs[0]).abs().flatten(1).amax(1)
                agree += int((near <= 1e-3 * ours[0].abs().max()).sum())
    return Exported(path, total, agree, difference, right / total if classes else None)


def _write_onnx(network: nn.Module, images: tuple[Tensor, ...]) -> bytes:
    _needed("onnx", "onnxscript", "onnxruntime")
    batch = torch.export.Dim("batch", min=1)
    names = [f"image{n}" if n else "image" for n in range(len(images))]
    program = torch.onnx.export(
        network, images, dynamo=True, opset_version=_OPSET, input_names=names,
        dynamic_shapes=[{0: batch} for _ in images], verbose=False,
    )  # fmt: skip
    assert program is not None
    buffer = io.BytesIO()
    program.save(buffer)
    return buffer.getvalue()


def _load_onnx(content: bytes) -> Loaded:
    session, names = _session(content)

    def run(*images: Tensor) -> list[Tensor]:
        given = {n: np.ascontiguousarray(i) for n, i in zip(names, images, strict=True)}
        return [torch.from_numpy(np.asarray(each)) for each in session.run(None, given)]

    return run


def _quantised(content: bytes, split: Split | Loader) -> bytes:
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    _, names = _session(content)
    parts = split.sample(_CALIBRATION, _CALIBRATION, 0)

    class Images(CalibrationDataReader):
        def get_next(self) -> dict | None:
            found = next(parts, None)
            if found is None:
                return None
            images = each_of(found[0])
            return {
                name: np.ascontiguousarray(i) for name, i in zip(names, images, strict=True)
            }

    with tempfile.TemporaryDirectory() as folder:
        whole, plain, small = (f"{folder}/{name}.onnx" for name in ("a", "b", "c"))
        Path(whole).write_bytes(content)
        quant_pre_process(whole, plain)
        quantize_static(plain, small, Images(), per_channel=True)
        return Path(small).read_bytes()


def _session(content: bytes) -> tuple[Any, list[str]]:
    """Return onnxruntime's session of a file, and the names of its inputs."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return session, [each.name for each in session.get_inputs()]


def _write_pt2(network: nn.Module, images: tuple[Tensor, ...]) -> bytes:
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(
        network, images, dynamic_shapes=[{0: batch} for _ in images], strict=False
    )
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def _load_pt2(content: bytes) -> Loaded:
    network = torch.export.load(io.BytesIO(content)).module()
    return lambda *images: tensors_in(network(*images))


def _write_torch(network: nn.Module, images: tuple[Tensor, ...]) -> bytes:
    shapes = tuple(tuple(image.shape[1:]) for image in images)
    buffer = io.BytesIO()
    torch.save(standing_alone(network, shapes), buffer)
    return buffer.getvalue()


def _load_torch(content: bytes) -> Loaded:
    # Made here a moment ago; what comes from elsewhere is never loaded so.
    network = torch.load(io.BytesIO(content), weights_only=False)
    return lambda *images: tensors_in(network(*images))


# How files end, are written and loaded.
ENDS = {"onnx": ".onnx", "pt2": ".pt2", "torch": ".pt"}
FORMATS: dict[Any, tuple[Callable[..., bytes], Callable[[bytes], Loaded]]] = {
    "onnx": (_write_onnx, _load_onnx),
    "pt2": (_write_pt2, _load_pt2),
    "torch": (_write_torch, _load_torch),
}


def _needed(*packages: str) -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise InputError(
                f"--format onnx needs {package}: pip install 'gnnrl-ray[onnx]'."
            )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep exporters from telling how they are."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


def _first_line(error: Exception) -> str:
    lines: Sequence[str] = str(error).strip().splitlines()
    return lines[0][:200] if lines else "no reason given"
