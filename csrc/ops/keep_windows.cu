#include "../core/cuda.cuh"
#include "keep_windows.h"

namespace pycc::keep_windows {
namespace {

constexpr int kRows = 8;  // rows of a block, one warp per row
constexpr int kThreads = kWarp * kRows;

// One warp per row; one thread per kStep neighbouring pixels, which are written at once.
template <int kStep>
__global__ void __launch_bounds__(kThreads)
    keep_kernel(float* __restrict__ out, const float* __restrict__ images,
                const std::int64_t* __restrict__ top_left, const float* __restrict__ fill,
                Sizes sizes) {
    const std::int64_t width = sizes.width;
    const std::int64_t rows = sizes.images * sizes.windows * sizes.channels * sizes.height;
    for (const std::int64_t i : warps_of_grid(rows)) {
        const std::int64_t y = i % sizes.height, plane = i / sizes.height;
        const std::int64_t c = plane % sizes.channels, result = plane / sizes.channels;
        const std::int64_t n = result / sizes.windows, m = result % sizes.windows;
        const float* source = images + ((n * sizes.channels + c) * sizes.height + y) * width;
        float* target = out + i * width;
        const float blank = fill[c];
        const bool row_kept = in_window(y, floor_modulo(top_left[2 * m], sizes.height),
                                        sizes.window_height, sizes.height);
        const std::int64_t left = floor_modulo(top_left[2 * m + 1], width);
        const std::int64_t extent = row_kept ? sizes.window_width : 0;
        for (const std::int64_t step : lanes_of_warp(width / kStep)) {  // kStep divides the width
            const std::int64_t x = step * kStep;
            float value[kStep];
            for (int k = 0; k < kStep; ++k) {
                value[k] = in_window(x + k, left, extent, width) ? source[x + k] : blank;
            }
            if constexpr (kStep == 4) {
                *reinterpret_cast<float4*>(target + x) =
                    make_float4(value[0], value[1], value[2], value[3]);
            } else {
                target[x] = value[0];
            }
        }
    }
}

// One warp per row of the gradient; one thread per kSums pixels of it. Every pixel is summed by one
// thread in the order of the windows, which gives the same bits as on the CPU.
__global__ void __launch_bounds__(kThreads)
    keep_backward_kernel(float* __restrict__ grad_images, const float* __restrict__ grad_out,
                         const std::int64_t* __restrict__ top_left, Sizes sizes) {
    constexpr int kSums = 4;
    PYCC_SHARED(tops, std::int64_t[kThreads]);
    PYCC_SHARED(lefts, std::int64_t[kThreads]);
    const int thread = thread_of_block();
    const std::int64_t width = sizes.width;
    const std::int64_t image_size = sizes.channels * sizes.height * width;
    const std::int64_t image_rows = sizes.channels * sizes.height;
    const std::int64_t rows = sizes.images * image_rows;
    // All threads of a block run these loops together, since they share the windows.
    for (const std::int64_t group : blocks_of_grid((rows + kRows - 1) / kRows)) {
        const std::int64_t i = group * kRows + threadIdx.y;
        const std::int64_t n = i / image_rows, y = i % sizes.height;
        const float* grad = grad_out + n * sizes.windows * image_size + i % image_rows * width;
        for (std::int64_t across = 0; across < width; across += kWarp * kSums) {
            float sums[kSums] = {};
            for (std::int64_t begin = 0; begin < sizes.windows; begin += kThreads) {
                const std::int64_t left = sizes.windows - begin;
                const int here = static_cast<int>(left < kThreads ? left : kThreads);
                __syncthreads();  // the previous windows have been used
                if (thread < here) {
                    const std::int64_t* place = top_left + 2 * (begin + thread);
                    tops[thread] = floor_modulo(place[0], sizes.height);
                    lefts[thread] = floor_modulo(place[1], width);
                }
                __syncthreads();
                for (int m = 0; m < here && i < rows; ++m) {
                    if (!in_window(y, tops[m], sizes.window_height, sizes.height)) continue;
                    const float* row = grad + (begin + m) * image_size;
                    for (int k = 0; k < kSums; ++k) {
                        const std::int64_t x = across + threadIdx.x + k * kWarp;
                        if (x < width && in_window(x, lefts[m], sizes.window_width, width)) {
                            sums[k] += row[x];
                        }
                    }
                }
            }
            for (int k = 0; k < kSums; ++k) {
                const std::int64_t x = across + threadIdx.x + k * kWarp;
                if (i < rows && x < width) grad_images[i * width + x] = sums[k];
            }
        }
    }
}

}  // namespace

void cuda(float* out /* [N*M,C,H,W] */, const float* images /* [N,C,H,W] */,
          const std::int64_t* top_left /* [M,2] (y, x) */, const float* fill /* [C] */,
          const Sizes& sizes, cudaStream_t stream) {
    const std::int64_t rows = sizes.images * sizes.windows * sizes.channels * sizes.height;
    if (rows * sizes.width == 0) return;
    const dim3 block(kWarp, kRows);
    if (sizes.width % 4 == 0 && reinterpret_cast<std::uintptr_t>(out) % sizeof(float4) == 0) {
        launch("keep_windows", keep_kernel<4>, strided_blocks(rows, kRows), block, 0, stream, out,
               images, top_left, fill, sizes);
    } else {
        launch("keep_windows", keep_kernel<1>, strided_blocks(rows, kRows), block, 0, stream, out,
               images, top_left, fill, sizes);
    }
}

void backward_cuda(float* grad_images /* [N,C,H,W] */, const float* grad_out /* [N*M,C,H,W] */,
                   const std::int64_t* top_left /* [M,2] (y, x) */, const Sizes& sizes,
                   cudaStream_t stream) {
    const std::int64_t rows = sizes.images * sizes.channels * sizes.height;
    if (rows * sizes.width == 0) return;
    launch("keep_windows backward", keep_backward_kernel, strided_blocks(rows, kRows),
           dim3(kWarp, kRows), 0, stream, grad_images, grad_out, top_left, sizes);
}

}  // namespace pycc::keep_windows
