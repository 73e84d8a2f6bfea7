"""The small programs that `metah-search doctor` runs, each in a process of its own.

Each fills the dictionary ``found``. Nothing here is executed by importing this module.
"""

DRIVER = """
from metah_runtime.cuda.probe import query_driver
found.update(query_driver().as_json())
"""

SANDBOX = """
from metah_runtime.images.sandbox import status
sandbox = status()
found["active"], found["missing_defences"] = sandbox.active, sandbox.missing
"""

ONNXRUNTIME = """
import onnxruntime as ort
found["version"] = ort.__version__
found["compiled_in"] = ort.get_available_providers()
found["loads"] = []
model = bytes.fromhex(
    "08083a370a100a017812017922084964656e746974791201675a0f0a0178120a"
    "0a08080112040a020801620f0a0179120a0a08080112040a02080142040a0010"
    "12"
)
options = ort.SessionOptions()
options.log_severity_level = 4
for provider in found["compiled_in"]:
    try:
        session = ort.InferenceSession(model, options, providers=[provider])
    except Exception:
        continue
    if session.get_providers()[0] == provider:
        found["loads"].append(provider)
"""
"""Which providers a session really gets: the list of compiled-in ones says nothing."""

LIBRARY = """
import MODULE as module
found["version"] = str(getattr(module, "__version__", getattr(module, "VERSION_TEXT", "")))
"""
