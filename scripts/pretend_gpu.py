#!/usr/bin/env python3
"""Builds libraries that pretend to be NVIDIA's, so that ONNX Runtime's CUDA provider can be asked where it would compute a graph.

    scripts/setup --cuda --dir cuda
    scripts/pretend_gpu.py pretended --ort cuda
    . pretended/env
    cargo test --test cuda_placement -- --ignored

Which operator runs where is decided when a session is made, from the provider's kernels and the types in the graph; no GPU takes
part in that, but the provider wants its libraries and a device. The ones built here answer every call with success. Memory of the
device is memory of the host, copies are copies, and kernels do nothing but for products of small matrices, with which ortdpo tests
a provider before it uses it. So sessions can be made and refused, not run.

Needs nm and a C compiler.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROVIDER = "libonnxruntime_providers_cuda.so"

# Calls whose answer matters. The sizes in cudaGetDeviceProperties are offsets in CUDA 13's cudaDeviceProp.
ANSWERS = r"""
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

static char handle[4096];
static const size_t memory = (size_t)80 << 30;

long cudaMalloc(void **p, size_t n) { *p = aligned_alloc(256, (n + 511) / 256 * 256); return *p ? 0 : 2; }
long cudaMallocHost(void **p, size_t n) { return cudaMalloc(p, n); }
long cudaHostAlloc(void **p, size_t n, unsigned flags) { return cudaMalloc(p, n); }
long cudaMallocFromPoolAsync(void **p, size_t n, void *pool, void *stream) { return cudaMalloc(p, n); }
long cudaFree(void *p) { free(p); return 0; }
long cudaFreeHost(void *p) { free(p); return 0; }
long cudaFreeAsync(void *p, void *stream) { free(p); return 0; }
long cudaMemcpy(void *to, const void *from, size_t n, int kind) { memcpy(to, from, n); return 0; }
long cudaMemcpyAsync(void *to, const void *from, size_t n, int kind, void *stream) { memcpy(to, from, n); return 0; }
long cudaMemset(void *p, int value, size_t n) { memset(p, value, n); return 0; }
long cudaMemsetAsync(void *p, int value, size_t n, void *stream) { memset(p, value, n); return 0; }
long cudaMemGetInfo(size_t *free_, size_t *total) { *free_ = *total = memory; return 0; }

long cudaGetDevice(int *device) { *device = 0; return 0; }
long cudaGetDeviceCount(int *count) { *count = 1; return 0; }
long cudaDriverGetVersion(int *version) { *version = 13000; return 0; }
long cudaRuntimeGetVersion(int *version) { *version = 13000; return 0; }
const char *cudaGetErrorString(int error) { return "no error"; }
const char *cudaGetErrorName(int error) { return "cudaSuccess"; }
long cudaGetDeviceProperties(char *p, int device) {
    memset(p, 0, 512);
    strcpy(p, "pretended");
    *(size_t *)(p + 288) = memory;
    *(size_t *)(p + 296) = 48 << 10;             /* shared memory of a block */
    *(int *)(p + 304) = 65536;                   /* registers of a block */
    *(int *)(p + 308) = 32;                      /* threads of a warp */
    *(int *)(p + 320) = 1024;                    /* threads of a block */
    for (int i = 0; i < 3; i++) {
        ((int *)(p + 324))[i] = 1024;
        ((int *)(p + 336))[i] = 65535;
    }
    *(int *)(p + 360) = 9;                       /* compute capability 9.0 */
    *(int *)(p + 384) = 132;                     /* multiprocessors */
    return 0;
}
long cudaDeviceGetAttribute(int *value, int attribute, int device) {
    switch (attribute) {
    case 1: *value = 1024; break;                /* threads of a block */
    case 10: *value = 32; break;                 /* threads of a warp */
    case 16: *value = 132; break;                /* multiprocessors */
    case 75: *value = 9; break;                  /* compute capability */
    case 76: *value = 0; break;
    default: *value = 65536;
    }
    return 0;
}
long cudaStreamCreate(void **p) { *p = handle; return 0; }
long cudaStreamCreateWithFlags(void **p, unsigned flags) { *p = handle; return 0; }
long cudaStreamIsCapturing(void *stream, int *state) { *state = 0; return 0; }
long cudaEventCreate(void **p) { *p = handle; return 0; }
long cudaEventCreateWithFlags(void **p, unsigned flags) { *p = handle; return 0; }
long cudaEventElapsedTime(float *ms, void *from, void *to) { *ms = 1; return 0; }
long cudaMemPoolCreate(void **p, void *properties) { *p = handle; return 0; }
long cudaPointerGetAttributes(int *attributes, void *p) { memset(attributes, 0, 32); attributes[0] = 2; return 0; }
void *__cudaRegisterFatBinary(void *binary) { return handle; }
long cublasCreate_v2(void **p) { *p = handle; return 0; }
long cublasLtCreate(void **p) { *p = handle; return 0; }
long curandCreateGenerator(void **p, int kind) { *p = handle; return 0; }
long cudnnCreate(void **p) { *p = handle; return 0; }
size_t cudnnGetVersion(void) { return 92800; }

long cublasSgemm_v2(void *h, int ta, int tb, int m, int n, int k, const float *alpha, const float *a, int lda,
                    const float *b, int ldb, const float *beta, float *c, int ldc) {
    if ((long)m * n * k > 4096)
        return 0;
    for (int i = 0; i < m; i++)
        for (int j = 0; j < n; j++) {
            float sum = 0;
            for (int l = 0; l < k; l++)
                sum += (ta ? a[l + i * lda] : a[i + l * lda]) * (tb ? b[j + l * ldb] : b[l + j * ldb]);
            c[i + j * ldc] = *alpha * sum;
        }
    return 0;
}
long cublasGemmEx(void *h, int ta, int tb, int m, int n, int k, const float *alpha, const float *a, int a_type, int lda,
                  const float *b, int b_type, int ldb, const float *beta, float *c, int c_type, int ldc, int compute,
                  int algorithm) {
    /* CUDA_R_32F is 0. */
    return a_type ? 0 : cublasSgemm_v2(h, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}
"""

# Where a symbol is does not matter to the loader, so one library has them all.
HOLDER = "libcudart.so.13"
CUDNN = "libcudnn.so.9"


def fail(message: str) -> None:
    sys.exit(f"scripts/pretend_gpu.py: {message}")


def run(*command: str) -> str:
    try:
        return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout
    except FileNotFoundError:
        fail(f"{command[0]} is not to be found; install binutils and a C compiler")
    except subprocess.CalledProcessError as error:
        fail(f"{' '.join(command)} failed with {error.returncode}")
    return ""


def wanted(provider: Path) -> tuple[set[str], set[str], list[str]]:
    """Functions that the provider links to, functions of cuDNN that it looks up, and libraries that it asks for."""
    undefined = {line.split()[-1].split("@")[0] for line in run("nm", "-D", "--undefined-only", str(provider)).splitlines()}
    linked = {name for name in undefined if re.match(r"(__cuda|cu[a-zA-Z]|nvrtc)", name)}
    looked_up = {m.decode() for m in re.findall(rb"\0(cudnn[A-Z][A-Za-z0-9_]*)(?=\0)", provider.read_bytes())}
    needed = re.findall(r"NEEDED.*\[(lib(?:cu|nv)[^\]]*)\]", run("readelf", "-d", str(provider)))
    return linked, looked_up, needed


def build(output: Path, name: str, source: str) -> None:
    file = output / f"{name}.c"
    file.write_text(source)
    run("cc", "-w", "-O1", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(output / name), str(file))
    file.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder for the libraries")
    parser.add_argument("--ort", type=Path, default=ROOT / ".ort", help="folder with ONNX Runtime's CUDA build (default: .ort)")
    args = parser.parse_args()
    provider = args.ort / PROVIDER
    runtime = next(iter(sorted(args.ort.glob("libonnxruntime.so*"))), None)
    if not provider.is_file() or runtime is None:
        fail(f"{args.ort} has no {PROVIDER}; fetch it with scripts/setup --cuda --dir FOLDER")
    args.output.mkdir(parents=True, exist_ok=True)

    linked, looked_up, needed = wanted(provider)
    answered = set(re.findall(r"(\w+)\([^;{]*\) \{", ANSWERS))
    agreeing = "".join(f"long {name}(void) {{ return 0; }}\n" for name in sorted((linked | looked_up) - answered))
    everything = ANSWERS + agreeing
    for name in sorted({*needed, HOLDER, CUDNN}):
        # cuDNN is opened by name and asked for its functions.
        build(args.output, name, everything if name in (HOLDER, CUDNN) else "")
    (args.output / "env").write_text(
        f"export ORT_DYLIB_PATH='{runtime.resolve()}'\n"
        f"export LD_LIBRARY_PATH='{args.output.resolve()}'\"${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}\"\n"
    )
    print(f"{args.output}: {len(linked | looked_up)} functions in {len({*needed, HOLDER, CUDNN})} libraries; . {args.output}/env")


if __name__ == "__main__":
    main()
