// A C door to Punica's CUDA kernels, for the benchmark: their sources are included from where the user has put them, at
// the widths of Punica's own benchmark. Their launches go to the default stream, which a graph cannot capture, so the
// two matrix-vector kernels are launched here, with the blocks and threads that they ask for, on the stream given.
//
// nvcc -shared -Xcompiler -fPIC -O3 -std=c++17 -arch=sm_90 -I <punica>/csrc -I <flashinfer>/include -I <cutlass>/include
#include "bgmv/bgmv_impl.cuh"
#include "sgmv/sgmv_cutlass.cuh"
#include "sgmv_flashinfer/sgmv_all.cu"

namespace {

using T = nv_bfloat16;

template <int IN, int OUT>
int bgmv(T* y, const T* x, const T* w, const int64_t* slots, int64_t rows, cudaStream_t stream) {
  if constexpr (IN < OUT) {
    constexpr int across = IN / 8, down = 32 / across, deep = 4;
    bgmv_expand_kernel<IN, OUT><<<dim3(OUT / (down * deep), rows), dim3(across, down, deep), 0, stream>>>(
        y, x, w, slots, 1, 0, 1.0f);
  } else {
    bgmv_shrink_kernel<IN, OUT><<<dim3(OUT, rows), dim3(32, 4), 0, stream>>>(y, x, w, slots, 1, 0, 1.0f);
  }
  return cudaGetLastError();
}

constexpr int64_t pair(int64_t in, int64_t out) { return in << 32 | out; }

}  // namespace

extern "C" {

// y += x W^T per row, W [slots, out, in] bf16. Returns a CUDA error, -1 for a shape that was not compiled.
int punica_bgmv(void* y, void* x, void* w, void* slots, int64_t rows, int64_t in, int64_t out, void* stream) {
#define CASE(a, b)   \
  case pair(a, b):   \
    return bgmv<a, b>((T*)y, (const T*)x, (const T*)w, (const int64_t*)slots, rows, (cudaStream_t)stream);
#define BOTH(narrow) CASE(narrow, 4096) CASE(4096, narrow) CASE(narrow, 11008) CASE(11008, narrow)
  switch (pair(in, out)) { BOTH(8) BOTH(16) BOTH(32) BOTH(64) }
  return -1;
}

// y += x W per segment, W [in, out] bf16 behind each pointer; tmp holds punica_tmp_size bytes.
int punica_sgmv(void* y, void* x, void* w, void* starts, void* tmp, int64_t problems, int64_t in, int64_t out,
                void* stream) {
  return sgmv<T>((T*)y, (T*)x, (T**)w, (int32_t*)starts, tmp, problems, in, out, 0, (cudaStream_t)stream) ? 0 : -1;
}

// y += x W^T per segment, W [out, in] bf16; out is 16, 32 or 64, tmp holds 8 MB.
int punica_sgmv_shrink(void* y, void* x, void* w, void* starts, void* tmp, int64_t problems, int64_t in, int64_t out,
                       void* stream) {
  bool done = false;
#define SHRINK(narrow)                                                                                            \
  if (out == narrow)                                                                                              \
    done = sgmv_shrink<T, narrow>((T*)y, (T*)x, (T**)w, (int32_t*)starts, tmp, problems, in, 0, (cudaStream_t)stream);
  SHRINK(16) SHRINK(32) SHRINK(64)
  return done ? 0 : -1;
}

int64_t punica_tmp_size(int64_t problems) { return sgmv_tmp_size(problems); }
}
