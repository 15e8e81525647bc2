#include "../core/cuda.cuh"
#include "max_window_sum.h"

namespace pycc {
namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr unsigned int kAll = 0xFFFFFFFFU;

// One thread a column and block of window rows: down the block, then up again.
__global__ void columns_kernel(double* __restrict__ columns, const float* __restrict__ maps,
                               SumSizes sizes, std::int64_t blocks) {
    const std::int64_t width = sizes.width, window = sizes.window_height, rows = sizes.rows();
    const std::int64_t work = sizes.maps * blocks * width;
    for (std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x; i < work;
         i += std::int64_t{gridDim.x} * kThreads) {
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

// The best of a block's offers is left in the first thread.
__device__ BestWindow best_of_block(BestWindow best, BestWindow* shared /* [kThreads / kWarp] */) {
    const auto reduce = [&best](int lanes) {
        for (int step = lanes / 2; step > 0; step /= 2) {
            const double sum = __shfl_down_sync(kAll, best.sum, step);
            const auto index = static_cast<std::int64_t>(
                __shfl_down_sync(kAll, static_cast<long long>(best.index), step));
            if (index >= 0) best.offer(sum, index);
        }
    };
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int warp = static_cast<int>(threadIdx.x) / kWarp;
    reduce(kWarp);
    __syncthreads();  // an earlier call's results have been read
    if (lane == 0) shared[warp] = best;
    __syncthreads();
    if (warp == 0) {
        best = lane < kThreads / kWarp ? shared[lane] : BestWindow{0.0, -1};
        reduce(kWarp);
    }
    return best;
}

// One block a row of places: doubles the column sums in place, in shared memory where they fit.
// Chunk after chunk from the left: a chunk is written when nothing reads it any more.
__global__ void __launch_bounds__(kThreads)
    rows_kernel(BestWindow* __restrict__ row_best, double* columns, double* all_tails,
                SumSizes sizes) {
    extern __shared__ double buffer[];
    __shared__ BestWindow shared[kThreads / kWarp];
    const std::int64_t width = sizes.width, window = sizes.window_width;
    const bool power = (window & (window - 1)) == 0;
    for (std::int64_t row = blockIdx.x; row < sizes.maps * sizes.rows(); row += gridDim.x) {
        double* sums = columns + row * width;
        double* tails = all_tails + row * width;
        if (all_tails == nullptr) {
            __syncthreads();  // the row before has been read
            for (std::int64_t x = threadIdx.x; x < width; x += kThreads) buffer[x] = sums[x];
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
        for (std::int64_t x = threadIdx.x; x < sizes.cols(); x += kThreads) best.offer(ready[x], x);
        best = best_of_block(best, shared);
        if (threadIdx.x == 0) {
            row_best[row] = {best.sum, row % sizes.rows() * sizes.cols() + best.index};
        }
    }
}

// One block a map.
__global__ void __launch_bounds__(kThreads)
    maps_kernel(double* __restrict__ sum, std::int64_t* __restrict__ place,
                const BestWindow* __restrict__ row_best, SumSizes sizes) {
    __shared__ BestWindow shared[kThreads / kWarp];
    for (std::int64_t n = blockIdx.x; n < sizes.maps; n += gridDim.x) {
        BestWindow best{0.0, -1};
        for (std::int64_t y = threadIdx.x; y < sizes.rows(); y += kThreads) {
            const BestWindow& row = row_best[n * sizes.rows() + y];
            best.offer(row.sum, row.index);
        }
        best = best_of_block(best, shared);
        if (threadIdx.x == 0) {
            sum[n] = best.sum;
            place[2 * n] = best.index / sizes.cols();
            place[2 * n + 1] = best.index % sizes.cols();
        }
    }
}

}  // namespace

void max_window_sum_cuda(double* sum, std::int64_t* place, double* columns, double* tails,
                         BestWindow* row_best, const float* maps, const SumSizes& sizes,
                         cudaStream_t stream) {
    if (sizes.maps == 0) return;
    const std::int64_t blocks = (sizes.rows() + sizes.window_height - 1) / sizes.window_height;
    const std::int64_t work = sizes.maps * blocks * sizes.width;
    columns_kernel<<<strided_blocks(work, kThreads), kThreads, 0, stream>>>(columns, maps, sizes,
                                                                            blocks);
    check_launch("max_window_sum columns");
    const auto bytes = tails == nullptr ? static_cast<std::size_t>(2 * sizes.width) * sizeof(double)
                                        : std::size_t{0};
    rows_kernel<<<strided_blocks(sizes.maps * sizes.rows(), 1), kThreads, bytes, stream>>>(
        row_best, columns, tails, sizes);
    check_launch("max_window_sum rows");
    maps_kernel<<<strided_blocks(sizes.maps, 1), kThreads, 0, stream>>>(sum, place, row_best,
                                                                        sizes);
    check_launch("max_window_sum");
}

}  // namespace pycc
