#include "../core/cuda.cuh"
#include "adaptive_sigma.h"

namespace pycc::adaptive_sigma {
namespace {

constexpr int kThreads = 256;

// One thread per point; all points are read through shared memory, tile by tile.
__global__ void __launch_bounds__(kThreads)
    sigma_kernel(float* __restrict__ sigma, const double* __restrict__ points, std::int64_t count,
                 int wanted, double beta) {
    PYCC_SHARED(tile, double2[kThreads]);
    // All threads of a block run these loops together, since they share the tile.
    for (const std::int64_t block : blocks_of_grid((count + kThreads - 1) / kThreads)) {
        const std::int64_t n = block * kThreads + threadIdx.x;
        const double x = n < count ? points[2 * n] : 0.0, y = n < count ? points[2 * n + 1] : 0.0;
        Nearest nearest(wanted);
        for (std::int64_t first = 0; first < count; first += kThreads) {
            const std::int64_t other = first + threadIdx.x;
            __syncthreads();
            if (other < count) tile[threadIdx.x] = {points[2 * other], points[2 * other + 1]};
            __syncthreads();
            const std::int64_t left = count - first;
            for (int i = 0; i < (left < kThreads ? static_cast<int>(left) : kThreads); ++i) {
                if (first + i == n) continue;
                const double dx = tile[i].x - x, dy = tile[i].y - y;
                nearest.offer(dx * dx + dy * dy);
            }
        }
        if (n < count) sigma[n] = static_cast<float>(beta * nearest.mean_distance());
    }
}

}  // namespace

void cuda(float* sigma /* [count] */, const double* points /* [count,2] (x, y) */,
          std::int64_t count, int neighbours, double beta, cudaStream_t stream) {
    const int wanted = static_cast<int>(neighbours < count - 1 ? neighbours : count - 1);
    launch("adaptive_sigma", sigma_kernel, strided_blocks(count, kThreads), kThreads, 0, stream,
           sigma, points, count, wanted, beta);
}

}  // namespace pycc::adaptive_sigma
