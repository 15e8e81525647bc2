#include "../core/cuda.cuh"
#include "deform_conv.h"

namespace pycc {
namespace {

constexpr int kWarp = 32, kWarps = 8;
constexpr unsigned int kAll = 0xFFFFFFFFU;
static_assert(kWarp == kDeformLanes, "a lane of a warp is a lane of the sums");

// The sum over a warp is left in its first lane: the fold of the CPU.
__device__ double fold(double sum) {
    for (int half = kWarp / 2; half > 0; half /= 2) sum += __shfl_down_sync(kAll, sum, half);
    return sum;
}

// A warp's share of sums[c % 32] += factor * a[c] * b[c]: its lane's own channels.
__device__ void add_products(double& sum, double factor, const float* a /* [C] */,
                             const float* b /* [C] */, std::int64_t channels) {
    for (std::int64_t c = threadIdx.x; c < channels; c += kWarp) {
        sum += factor * static_cast<double>(a[c]) * static_cast<double>(b[c]);
    }
}

// The first item of this warp, and the warps of the grid.
__device__ std::int64_t first_item() {
    return std::int64_t{blockIdx.x} * kWarps + threadIdx.y;
}
__device__ std::int64_t item_step() {
    return std::int64_t{gridDim.x} * kWarps;
}

// A warp an output value. All lanes of a warp take the same branches.
__global__ void __launch_bounds__(kWarp* kWarps)
    convolve_kernel(float* __restrict__ out, const float* __restrict__ x,
                    const float* __restrict__ offset, const float* __restrict__ weight,
                    DeformSizes sizes) {
    const std::int64_t channels = sizes.channels, cells = sizes.cells();
    const std::int64_t work = sizes.images * cells * sizes.outputs;
    for (std::int64_t item = first_item(); item < work; item += item_step()) {
        const std::int64_t i = item / sizes.outputs, o = item % sizes.outputs, cell = i % cells;
        const float* image = x + (i - cell) * channels;
        double sum = 0.0;
        for (std::int64_t k = 0; k < kDeformTaps; ++k) {
            const DeformTap tap = read_tap(offset + (i * kDeformTaps + k) * 2, cell / sizes.width,
                                           cell % sizes.width, k, sizes);
            const float* kernel = weight + (o * kDeformTaps + k) * channels;
            for (int corner = 0; corner < 4; ++corner) {
                if (tap.weight[corner] == 0.0) continue;
                add_products(sum, tap.weight[corner], kernel, image + tap.pixel[corner] * channels,
                             channels);
            }
        }
        sum = fold(sum);
        if (threadIdx.x == 0) out[item] = static_cast<float>(sum);
    }
}

// A warp a tap of a cell.
__global__ void __launch_bounds__(kWarp* kWarps)
    differentiate_kernel(float* __restrict__ grad_offset, const float* __restrict__ grad_out,
                         const float* __restrict__ x, const float* __restrict__ offset,
                         const float* __restrict__ weight, DeformSizes sizes) {
    const std::int64_t channels = sizes.channels, cells = sizes.cells();
    const std::int64_t work = sizes.images * cells * kDeformTaps;
    for (std::int64_t item = first_item(); item < work; item += item_step()) {
        const std::int64_t i = item / kDeformTaps, k = item % kDeformTaps, cell = i % cells;
        const float* image = x + (i - cell) * channels;
        const DeformTap tap =
            read_tap(offset + item * 2, cell / sizes.width, cell % sizes.width, k, sizes);
        double down = 0.0, right = 0.0;
        for (int corner = 0; corner < 4; ++corner) {
            if (tap.down[corner] == 0.0 && tap.right[corner] == 0.0) continue;
            double sum = 0.0;
            for (std::int64_t o = 0; o < sizes.outputs; ++o) {
                add_products(sum, static_cast<double>(grad_out[i * sizes.outputs + o]),
                             weight + (o * kDeformTaps + k) * channels,
                             image + tap.pixel[corner] * channels, channels);
            }
            sum = fold(sum);  // right in the first lane only, which writes
            if (tap.down[corner] != 0.0) down += tap.down[corner] * sum;
            if (tap.right[corner] != 0.0) right += tap.right[corner] * sum;
        }
        if (threadIdx.x == 0) {
            grad_offset[item * 2] = static_cast<float>(down);
            grad_offset[item * 2 + 1] = static_cast<float>(right);
        }
    }
}

// With what weight a tap blends a pixel; 0 where it does not.
__device__ double weight_of(const DeformTap& tap, std::int64_t pixel) {
    double weight = 0.0;
    for (int corner = 0; corner < 4; ++corner) {  // NaN: no pixel is meant
        if (tap.weight[corner] > 0.0 && tap.pixel[corner] == pixel) weight = tap.weight[corner];
    }
    return weight;
}

// A warp kGathered channels of a pixel, for each lane kPerLane of them. Offsets reach anywhere, so
// every tap of the image is looked at, 32 at once, and those that blend the pixel are added one
// after the other: in the order in which the CPU scatters, without atomics.
constexpr int kPerLane = 4;
constexpr std::int64_t kGathered = std::int64_t{kPerLane} * kWarp;

__global__ void __launch_bounds__(kWarp* kWarps)
    gather_kernel(float* __restrict__ grad_x, const float* __restrict__ grad_out,
                  const float* __restrict__ offset, const float* __restrict__ weight,
                  DeformSizes sizes) {
    const std::int64_t channels = sizes.channels, cells = sizes.cells();
    const std::int64_t blocks = (channels + kGathered - 1) / kGathered;
    const std::int64_t taps = cells * kDeformTaps, work = sizes.images * cells * blocks;
    for (std::int64_t item = first_item(); item < work; item += item_step()) {
        const std::int64_t pixel = item / blocks % cells, n = item / blocks / cells;
        const std::int64_t first = item % blocks * kGathered + threadIdx.x;
        double sums[kPerLane] = {};
        for (std::int64_t begin = 0; begin < taps; begin += kWarp) {
            const std::int64_t own = begin + threadIdx.x, cell = own / kDeformTaps;
            double share = 0.0;
            if (own < taps) {
                const DeformTap tap = read_tap(offset + (n * taps + own) * 2, cell / sizes.width,
                                               cell % sizes.width, own % kDeformTaps, sizes);
                share = weight_of(tap, pixel);
            }
            unsigned int there = __ballot_sync(kAll, share > 0.0);
            while (there != 0) {
                const int lane = __ffs(static_cast<int>(there)) - 1;
                there &= there - 1;
                const double blended = __shfl_sync(kAll, share, lane);
                const std::int64_t i = n * cells + (begin + lane) / kDeformTaps;
                const std::int64_t k = (begin + lane) % kDeformTaps;
                for (int part = 0; part < kPerLane; ++part) {
                    const std::int64_t c = first + part * kWarp;
                    if (c >= channels) break;
                    double grad = 0.0;
                    for (std::int64_t o = 0; o < sizes.outputs; ++o) {
                        grad += static_cast<double>(grad_out[i * sizes.outputs + o]) *
                                static_cast<double>(weight[(o * kDeformTaps + k) * channels + c]);
                    }
                    sums[part] += blended * grad;
                }
            }
        }
        for (int part = 0; part < kPerLane; ++part) {
            const std::int64_t c = first + part * kWarp;
            if (c < channels) {
                grad_x[(n * cells + pixel) * channels + c] = static_cast<float>(sums[part]);
            }
        }
    }
}

// A block 32 channels of one tap of one output's kernel; a warp every eighth cell.
__global__ void __launch_bounds__(kWarp* kWarps)
    correlate_kernel(float* __restrict__ grad_weight, const float* __restrict__ grad_out,
                     const float* __restrict__ x, const float* __restrict__ offset,
                     DeformSizes sizes) {
    static_assert(kWarps == kDeformSlices, "a warp of a block is a slice of the sums");
    __shared__ double sums[kWarps][kWarp];
    const std::int64_t channels = sizes.channels, cells = sizes.cells();
    const std::int64_t blocks = (channels + kWarp - 1) / kWarp;
    const std::int64_t work = sizes.outputs * kDeformTaps * blocks;
    // All threads of a block go through this loop together.
    for (std::int64_t item = blockIdx.x; item < work; item += gridDim.x) {
        const std::int64_t k = item / blocks % kDeformTaps, o = item / blocks / kDeformTaps;
        const std::int64_t c = item % blocks * kWarp + threadIdx.x;
        double sum = 0.0;
        for (std::int64_t i = threadIdx.y; i < sizes.images * cells; i += kWarps) {
            const std::int64_t cell = i % cells;
            const DeformTap tap = read_tap(offset + (i * kDeformTaps + k) * 2, cell / sizes.width,
                                           cell % sizes.width, k, sizes);
            const double upstream = static_cast<double>(grad_out[i * sizes.outputs + o]);
            for (int corner = 0; corner < 4; ++corner) {
                if (tap.weight[corner] == 0.0 || c >= channels) continue;
                const double factor = upstream * tap.weight[corner];
                sum +=
                    factor * static_cast<double>(x[(i - cell + tap.pixel[corner]) * channels + c]);
            }
        }
        sums[threadIdx.y][threadIdx.x] = sum;
        for (unsigned int half = kWarps / 2; half > 0; half /= 2) {
            __syncthreads();
            if (threadIdx.y < half) {
                sums[threadIdx.y][threadIdx.x] += sums[threadIdx.y + half][threadIdx.x];
            }
        }
        if (threadIdx.y == 0 && c < channels) {  // its own sum, which no other thread touches now
            grad_weight[(o * kDeformTaps + k) * channels + c] =
                static_cast<float>(sums[0][threadIdx.x]);
        }
        __syncthreads();  // before the sums of the next item are written
    }
}

dim3 block_of_warps() {
    return dim3(kWarp, kWarps);
}

}  // namespace

void deform_conv_cuda(float* out, const float* x, const float* offset, const float* weight,
                      const DeformSizes& sizes, cudaStream_t stream) {
    const std::int64_t work = sizes.images * sizes.cells() * sizes.outputs;
    if (work == 0) return;
    convolve_kernel<<<strided_blocks(work, kWarps), block_of_warps(), 0, stream>>>(out, x, offset,
                                                                                   weight, sizes);
    check_launch("deform_conv");
}

void deform_conv_grad_x_cuda(float* grad_x, const float* grad_out, const float* offset,
                             const float* weight, const DeformSizes& sizes, cudaStream_t stream) {
    const std::int64_t blocks = (sizes.channels + kGathered - 1) / kGathered;
    const std::int64_t work = sizes.images * sizes.cells() * blocks;
    if (work == 0) return;
    gather_kernel<<<strided_blocks(work, kWarps), block_of_warps(), 0, stream>>>(
        grad_x, grad_out, offset, weight, sizes);
    check_launch("deform_conv grad_x");
}

void deform_conv_grad_offset_cuda(float* grad_offset, const float* grad_out, const float* x,
                                  const float* offset, const float* weight,
                                  const DeformSizes& sizes, cudaStream_t stream) {
    const std::int64_t work = sizes.images * sizes.cells() * kDeformTaps;
    if (work == 0) return;
    differentiate_kernel<<<strided_blocks(work, kWarps), block_of_warps(), 0, stream>>>(
        grad_offset, grad_out, x, offset, weight, sizes);
    check_launch("deform_conv grad_offset");
}

void deform_conv_grad_weight_cuda(float* grad_weight, const float* grad_out, const float* x,
                                  const float* offset, const DeformSizes& sizes,
                                  cudaStream_t stream) {
    const std::int64_t blocks = (sizes.channels + kWarp - 1) / kWarp;
    const std::int64_t work = sizes.outputs * kDeformTaps * blocks;
    if (work == 0) return;
    correlate_kernel<<<strided_blocks(work, 1), block_of_warps(), 0, stream>>>(
        grad_weight, grad_out, x, offset, sizes);
    check_launch("deform_conv grad_weight");
}

}  // namespace pycc
