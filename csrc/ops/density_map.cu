#include "../core/cuda.cuh"
#include "density_map.h"

namespace pycc::density_map {
namespace {

constexpr int kTile = 32;  // side in cells of the tile that a block sums
constexpr int kRows = 8;   // a block has kTile x kRows threads
constexpr int kThreads = kTile * kRows;
constexpr int kBatch = 16;  // heads whose weights are in shared memory at once

struct ExpTap {
    double sigma;
    __device__ double operator()(std::int64_t offset) const { return gaussian_tap(offset, sigma); }
};

__global__ void axes_kernel(HeadAxes* __restrict__ axes, const std::int64_t* __restrict__ pixels,
                            const double* __restrict__ sigma, std::int64_t count,
                            std::int64_t height, std::int64_t width, double truncate,
                            Boundary boundary) {
    for (const std::int64_t n : threads_of_grid(count)) {
        const ExpTap tap{sigma[n]};
        const std::int64_t radius = kernel_radius(sigma[n], truncate);
        axes[n] = {make_axis(pixels[2 * n], radius, height, boundary, tap),
                   make_axis(pixels[2 * n + 1], radius, width, boundary, tap)};
    }
}

// Every cell receives the heads that reach its tile in their order, so that bits do not change
// between runs.
__global__ void __launch_bounds__(kThreads)
    density_kernel(float* __restrict__ map, const HeadAxes* __restrict__ axes,
                   const double* __restrict__ sigma, std::int64_t count, std::int64_t rows,
                   std::int64_t cols, std::int64_t stride, Boundary boundary) {
    PYCC_SHARED(hits, std::int64_t[kThreads]);
    PYCC_SHARED(warp_hits, int[kThreads / kWarp + 1]);
    PYCC_SHARED(weights, float[kBatch][2][kTile]);
    const int thread = thread_of_block();
    const int lane = lane_of_warp(), warp = warp_of_block();
    const std::int64_t left = std::int64_t{blockIdx.x} * kTile;
    const std::int64_t top = std::int64_t{blockIdx.y} * kTile;
    float sums[kTile / kRows] = {};

    for (std::int64_t first = 0; first < count; first += kThreads) {
        // Select, in order, those of the next heads that reach this tile.
        bool reaches = false;
        if (first + thread < count) {
            const Cells y = reached_cells(axes[first + thread].y, stride);
            const Cells x = reached_cells(axes[first + thread].x, stride);
            reaches =
                y.first < top + kTile && y.last > top && x.first < left + kTile && x.last > left;
        }
        const unsigned int votes = __ballot_sync(kAllLanes, reaches);
        if (lane == 0) warp_hits[warp + 1] = __popc(votes);
        __syncthreads();
        if (thread == 0) {
            warp_hits[0] = 0;
            for (int w = 0; w < kThreads / kWarp; ++w) warp_hits[w + 1] += warp_hits[w];
        }
        __syncthreads();
        if (reaches) {
            hits[warp_hits[warp] + __popc(votes & ((1U << lane) - 1U))] = first + thread;
        }
        // Counted by the barrier: a faster warp may already have changed the counter in memory.
        const int found = __syncthreads_count(reaches);

        for (int batch = 0; batch < found; batch += kBatch) {
            const int heads = found - batch < kBatch ? found - batch : kBatch;
            for (int task = thread; task < heads * 2 * kTile; task += kThreads) {
                const int head = task / (2 * kTile), side = task / kTile % 2, at = task % kTile;
                const std::int64_t n = hits[batch + head];
                const Axis axis = side == 0 ? axes[n].y : axes[n].x;
                const std::int64_t cell = (side == 0 ? top : left) + at;
                weights[head][side][at] =
                    cell < axis.size / stride
                        ? cell_weight(cell, stride, axis, boundary, ExpTap{sigma[n]})
                        : 0.0F;
            }
            __syncthreads();
            for (int head = 0; head < heads; ++head) {
                const float across = weights[head][1][threadIdx.x];
                for (int i = 0; i < kTile / kRows; ++i) {
                    sums[i] += weights[head][0][static_cast<int>(threadIdx.y) + i * kRows] * across;
                }
            }
            __syncthreads();
        }
    }
    const std::int64_t col = left + threadIdx.x;
    for (int i = 0; i < kTile / kRows; ++i) {
        const std::int64_t row = top + threadIdx.y + i * kRows;
        if (row < rows && col < cols) map[row * cols + col] = sums[i];
    }
}

}  // namespace

void cuda(float* map /* [height/stride,width/stride] */, HeadAxes* axes /* [count], scratch */,
          const std::int64_t* pixels /* [count,2] (y, x) */, const double* sigma /* [count] */,
          std::int64_t count, std::int64_t height, std::int64_t width, std::int64_t stride,
          double truncate, Boundary boundary, cudaStream_t stream) {
    const std::int64_t rows = height / stride, cols = width / stride;
    if (rows == 0 || cols == 0) return;
    if (rows > std::int64_t{65535} * kTile) {
        throw std::invalid_argument("density_map: on CUDA at most 2097120 rows of cells, got " +
                                    std::to_string(rows));
    }
    if (count > 0) {
        launch("density_map axes", axes_kernel, strided_blocks(count, 128), 128, 0, stream, axes,
               pixels, sigma, count, height, width, truncate, boundary);
    }
    const dim3 grid(blocks_for(cols, kTile), blocks_for(rows, kTile));
    launch("density_map", density_kernel, grid, dim3(kTile, kRows), 0, stream, map, axes, sigma,
           count, rows, cols, stride, boundary);
}

}  // namespace pycc::density_map
