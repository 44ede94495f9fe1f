#!/usr/bin/env python3
"""Writes ONNX's own operator tests as files, from the case sources in the Python package `onnx`.

    scripts/node_tests.py [--output .data/onnx-node-tests]

Every case becomes NAME/model.onnx and NAME/test_data_set_0/{input,output}_N.pb (TensorProto, or SequenceProto and
OptionalProto where the model's input says so), which is the layout that ONNX's backend tests have everywhere.
Needs any Python 3.10 or newer with `venv`; the pinned package goes into a virtual environment beside the output.
Does nothing when the output is already that of the pinned version. Cases whose extra packages are missing (Pillow for
ImageDecoder) are left out by `onnx` itself.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

ONNX_VERSION = "1.23.2"
DATA = Path(__file__).resolve().parent.parent / ".data"


def is_complete(output: Path) -> bool:
    """Whether an earlier run finished with this version; the stamp is written last."""
    stamp = output / "VERSION"
    return stamp.is_file() and stamp.read_text().strip() == ONNX_VERSION


def run_with_onnx(output: Path) -> int:
    """Install the pinned package into its own environment and run this script there."""
    environment = DATA / f"onnx-{ONNX_VERSION}-env"
    python = environment / "bin" / "python"
    commands = [
        [sys.executable, "-m", "venv", "--clear", str(environment)],
        [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", f"onnx=={ONNX_VERSION}"],
    ]
    check = [str(python), "-c", f"import onnx; assert onnx.__version__ == '{ONNX_VERSION}'"]
    if not python.exists() or subprocess.run(check, stderr=subprocess.DEVNULL).returncode != 0:
        for command in commands:
            if subprocess.run(command).returncode != 0:
                sys.exit(
                    f"node_tests.py: `{' '.join(command)}` failed (see above). ONNX's operator tests need Python 3.10 "
                    f"or newer with the module venv (Debian: python3-venv) and a package index that has "
                    f"onnx {ONNX_VERSION}."
                )
    return subprocess.run([str(python), __file__, "--output", str(output), "--write"]).returncode


def serialise(value, info) -> bytes:
    """One input or output in the protobuf type that the model declares for it."""
    from onnx import TensorProto, numpy_helper

    if isinstance(value, TensorProto):
        return value.SerializeToString()
    if info.type.HasField("sequence_type"):
        return numpy_helper.from_list(value, info.name).SerializeToString()
    if info.type.HasField("optional_type"):
        return numpy_helper.from_optional(value, info.name).SerializeToString()
    return numpy_helper.from_array(value, info.name).SerializeToString()


def write_case(case, folder: Path) -> None:
    """One case as model.onnx and its data set."""
    data = folder / "test_data_set_0"
    data.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(case.model.SerializeToString())
    [(inputs, outputs)] = case.data_sets
    for kind, values, infos in (
        ("input", inputs, case.model.graph.input),
        ("output", outputs, case.model.graph.output),
    ):
        for i, (value, info) in enumerate(zip(values, infos, strict=True)):
            (data / f"{kind}_{i}.pb").write_bytes(serialise(value, info))


def write_all(output: Path) -> None:
    """Generate every case beside the output and put it in place when all are there."""
    from onnx.backend.test.case.node import collect_testcases

    warnings.simplefilter("ignore")  # the case sources overflow and divide by zero on purpose
    fresh = output.with_name(output.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    cases = collect_testcases(None)
    for case in cases:
        write_case(case, fresh / case.name)
    (fresh / "VERSION").write_text(ONNX_VERSION + "\n")
    shutil.rmtree(output, ignore_errors=True)
    os.replace(fresh, output)
    print(f"{len(cases)} operator tests of onnx {ONNX_VERSION} in {output}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=DATA / "onnx-node-tests")
    parser.add_argument("--write", action="store_true", help="the package is here: write the cases (used by itself)")
    options = parser.parse_args()

    if options.write:
        write_all(options.output)
    elif is_complete(options.output):
        print(f"operator tests of onnx {ONNX_VERSION} are in {options.output}")
    else:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        sys.exit(run_with_onnx(options.output))


if __name__ == "__main__":
    main()
