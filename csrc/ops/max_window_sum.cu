#include "../core/cuda.cuh"
#include "max_window_sum.h"

namespace pycc::max_window_sum {
namespace {

constexpr int kThreads = 256;

// One thread per column and block of window rows: down the block, then up again.
__global__ void columns_kernel(double* __restrict__ columns, const float* __restrict__ maps,
                               Sizes sizes, std::int64_t blocks) {
    const std::int64_t width = sizes.width, window = sizes.window_height, rows = sizes.rows();
    const std::int64_t work = sizes.maps * blocks * width;
    for (const std::int64_t i : threads_of_grid(work)) {
        const std::int64_t x = i % width, start = i / width % blocks * window;
        const std::int64_t n = i / (width * blocks);
        const float* values = maps + n * sizes.height * width + x;
        double* sums = columns + n * rows * width + x;
        const std::int64_t end = start + window < rows ? start + window : rows;
        double sum = static_cast<double>(values[(start + window - 1) * width]);
        if (start + window - 1 < end) sums[(start + window - 1) * width] = sum;
        for (std::int64_t y = start + window - 2; y >= start; --y) {
            sum = static_cast<double>(values[y * width]) + sum;
            if (y < end) sums[y * width] = sum;
        }
        if (start + 1 >= end) continue;
        sum = static_cast<double>(values[(start + window) * width]);
        sums[(start + 1) * width] = sums[(start + 1) * width] + sum;
        for (std::int64_t y = start + 2; y < end; ++y) {
            sum = static_cast<double>(values[(y + window - 1) * width]) + sum;
            sums[y * width] = sums[y * width] + sum;
        }
    }
}

// One block per row of places: doubles the column sums in place, in shared memory if they fit.
// Chunks are processed from the left: a chunk is written after its last read.
__global__ void __launch_bounds__(kThreads)
    rows_kernel(BestWindow* __restrict__ row_best, double* columns, double* all_tails,
                Sizes sizes) {
    PYCC_DYNAMIC_SHARED(double, buffer);
    const std::int64_t width = sizes.width, window = sizes.window_width;
    const bool power = (window & (window - 1)) == 0;
    for (const std::int64_t row : blocks_of_grid(sizes.maps * sizes.rows())) {
        double* sums = columns + row * width;
        double* tails = all_tails + row * width;
        if (all_tails == nullptr) {
            __syncthreads();  // the previous row has been read
            for (const std::int64_t x : threads_of_block(width)) buffer[x] = sums[x];
            sums = buffer, tails = buffer + width;
            __syncthreads();
        }
        for (std::int64_t length = 1; length <= window; length *= 2) {
            const bool bit = (window & length) != 0, first = (window & (length - 1)) == 0;
            const bool more = 2 * length <= window;
            for (std::int64_t chunk = 0; chunk + length <= width; chunk += kThreads) {
                const std::int64_t x = chunk + threadIdx.x;
                const double sum = x < width ? sums[x] : 0.0;
                const double next = x + length < width ? sums[x + length] : 0.0;
                double tail = sum;
                if (bit && !first) tail = sum + (x + length < width ? tails[x + length] : 0.0);
                __syncthreads();
                if (x < width && bit) tails[x] = tail;
                if (x < width && more) sums[x] = sum + next;
                __syncthreads();
            }
        }
        const double* ready = power ? sums : tails;
        BestWindow best{0.0, -1};
        for (const std::int64_t x : threads_of_block(sizes.cols())) best.offer(ready[x], x);
        best = fold_block<kThreads>(best, window_sums::Better{});
        if (threadIdx.x == 0) {
            row_best[row] = {best.sum, row % sizes.rows() * sizes.cols() + best.index};
        }
    }
}

// One block per map.
__global__ void __launch_bounds__(kThreads)
    maps_kernel(double* __restrict__ sum, std::int64_t* __restrict__ place,
                const BestWindow* __restrict__ row_best, Sizes sizes) {
    for (const std::int64_t n : blocks_of_grid(sizes.maps)) {
        BestWindow best{0.0, -1};
        for (const std::int64_t y : threads_of_block(sizes.rows())) {
            const BestWindow& row = row_best[n * sizes.rows() + y];
            best.offer(row.sum, row.index);
        }
        best = fold_block<kThreads>(best, window_sums::Better{});
        if (threadIdx.x == 0) {
            sum[n] = best.sum;
            place[2 * n] = best.index / sizes.cols();
            place[2 * n + 1] = best.index % sizes.cols();
        }
    }
}

}  // namespace

void cuda(double* sum /* [N] */, std::int64_t* place /* [N,2] (y, x) */,
          double* columns /* [N,rows,w], scratch */,
          Nullable<double> tails /* [N,rows,w], scratch; null up to kMaxSharedWidth */,
          BestWindow* row_best /* [N,rows], scratch */, const float* maps /* [N,h,w] */,
          const Sizes& sizes, cudaStream_t stream) {
    if (sizes.maps == 0) return;
    const std::int64_t blocks = (sizes.rows() + sizes.window_height - 1) / sizes.window_height;
    const std::int64_t work = sizes.maps * blocks * sizes.width;
    launch("max_window_sum columns", columns_kernel, strided_blocks(work, kThreads), kThreads, 0,
           stream, columns, maps, sizes, blocks);
    const auto bytes = tails == nullptr ? static_cast<std::size_t>(2 * sizes.width) * sizeof(double)
                                        : std::size_t{0};
    launch("max_window_sum rows", rows_kernel, strided_blocks(sizes.maps * sizes.rows(), 1),
           kThreads, bytes, stream, row_best, columns, tails, sizes);
    launch("max_window_sum", maps_kernel, strided_blocks(sizes.maps, 1), kThreads, 0, stream, sum,
           place, row_best, sizes);
}

}  // namespace pycc::max_window_sum
