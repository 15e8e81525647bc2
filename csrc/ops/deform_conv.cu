#include "../core/cuda.cuh"
#include "deform_conv.h"

namespace pycc::deform_conv {
namespace {

constexpr int kWarps = 8;
static_assert(kWarp == kLanes, "a lane of a warp is a lane of the sums");

// Adds factor * a[c] * b[c] for the channels c of this lane, c % 32 == lane.
__device__ void add_products(double& sum, double factor, const float* a /* [C] */,
                             const float* b /* [C] */, std::int64_t channels) {
    for (const std::int64_t c : lanes_of_warp(channels)) {
        sum += factor * static_cast<double>(a[c]) * static_cast<double>(b[c]);
    }
}

// One warp per output value. All lanes of a warp take the same branches.
__global__ void __launch_bounds__(kWarp* kWarps)
    convolve_kernel(float* __restrict__ out, const float* __restrict__ x,
                    const float* __restrict__ offset, const float* __restrict__ weight,
                    Sizes sizes) {
    const std::int64_t channels = sizes.channels, cells = sizes.cells();
    const std::int64_t work = sizes.images * cells * sizes.outputs;
    for (const std::int64_t item : warps_of_grid(work)) {
        const std::int64_t i = item / sizes.outputs, o = item % sizes.outputs, cell = i % cells;
        const float* image = x + (i - cell) * channels;
        double sum = 0.0;
        for (std::int64_t k = 0; k < kTaps; ++k) {
            const Tap tap = read_tap(offset + (i * kTaps + k) * 2, cell / sizes.width,
                                     cell % sizes.width, k, sizes);
            const float* kernel = weight + (o * kTaps + k) * channels;
            for (int corner = 0; corner < 4; ++corner) {
                if (tap.weight[corner] == 0.0) continue;
                add_products(sum, tap.weight[corner], kernel, image + tap.pixel[corner] * channels,
                             channels);
            }
        }
        sum = fold_warp(sum, Sum{});  // as on the CPU
        if (threadIdx.x == 0) out[item] = static_cast<float>(sum);
    }
}

// One warp per tap of a cell.
__global__ void __launch_bounds__(kWarp* kWarps)
    differentiate_kernel(float* __restrict__ grad_offset, const float* __restrict__ grad_out,
                         const float* __restrict__ x, const float* __restrict__ offset,
                         const float* __restrict__ weight, Sizes sizes) {
    const std::int64_t channels = sizes.channels, cells = sizes.cells();
    const std::int64_t work = sizes.images * cells * kTaps;
    for (const std::int64_t item : warps_of_grid(work)) {
        const std::int64_t i = item / kTaps, k = item % kTaps, cell = i % cells;
        const float* image = x + (i - cell) * channels;
        const Tap tap =
            read_tap(offset + item * 2, cell / sizes.width, cell % sizes.width, k, sizes);
        double down = 0.0, right = 0.0;
        for (int corner = 0; corner < 4; ++corner) {
            if (tap.down[corner] == 0.0 && tap.right[corner] == 0.0) continue;
            double sum = 0.0;
            for (std::int64_t o = 0; o < sizes.outputs; ++o) {
                add_products(sum, static_cast<double>(grad_out[i * sizes.outputs + o]),
                             weight + (o * kTaps + k) * channels,
                             image + tap.pixel[corner] * channels, channels);
            }
            sum = fold_warp(sum, Sum{});  // valid in the first lane only, which writes it
            if (tap.down[corner] != 0.0) down += tap.down[corner] * sum;
            if (tap.right[corner] != 0.0) right += tap.right[corner] * sum;
        }
        if (threadIdx.x == 0) {
            grad_offset[item * 2] = static_cast<float>(down);
            grad_offset[item * 2 + 1] = static_cast<float>(right);
        }
    }
}

// Returns the weight with which a tap blends a pixel; 0 if it does not.
__device__ double weight_of(const Tap& tap, std::int64_t pixel) {
    double weight = 0.0;
    for (int corner = 0; corner < 4; ++corner) {  // for NaN, the pixel is unused
        if (tap.weight[corner] > 0.0 && tap.pixel[corner] == pixel) weight = tap.weight[corner];
    }
    return weight;
}

// One warp per kGathered channels of a pixel, kPerLane for each lane. Offsets are unbounded, so
// that every tap of the image is tested, 32 at once. Those that blend the pixel are added in the
// order in which the CPU scatters, without atomics.
constexpr int kPerLane = 4;
constexpr std::int64_t kGathered = std::int64_t{kPerLane} * kWarp;

__global__ void __launch_bounds__(kWarp* kWarps)
    gather_kernel(float* __restrict__ grad_x, const float* __restrict__ grad_out,
                  const float* __restrict__ offset, const float* __restrict__ weight, Sizes sizes) {
    const std::int64_t channels = sizes.channels, cells = sizes.cells();
    const std::int64_t blocks = (channels + kGathered - 1) / kGathered;
    const std::int64_t taps = cells * kTaps, work = sizes.images * cells * blocks;
    for (const std::int64_t item : warps_of_grid(work)) {
        const std::int64_t pixel = item / blocks % cells, n = item / blocks / cells;
        const std::int64_t first = item % blocks * kGathered + threadIdx.x;
        double sums[kPerLane] = {};
        for (std::int64_t begin = 0; begin < taps; begin += kWarp) {
            const std::int64_t own = begin + threadIdx.x, cell = own / kTaps;
            double share = 0.0;
            if (own < taps) {
                const Tap tap = read_tap(offset + (n * taps + own) * 2, cell / sizes.width,
                                         cell % sizes.width, own % kTaps, sizes);
                share = weight_of(tap, pixel);
            }
            unsigned int there = __ballot_sync(kAllLanes, share > 0.0);
            while (there != 0) {
                const int lane = __ffs(static_cast<int>(there)) - 1;
                there &= there - 1;
                const double blended = __shfl_sync(kAllLanes, share, lane);
                const std::int64_t i = n * cells + (begin + lane) / kTaps;
                const std::int64_t k = (begin + lane) % kTaps;
                for (int part = 0; part < kPerLane; ++part) {
                    const std::int64_t c = first + part * kWarp;
                    if (c >= channels) break;
                    double grad = 0.0;
                    for (std::int64_t o = 0; o < sizes.outputs; ++o) {
                        grad += static_cast<double>(grad_out[i * sizes.outputs + o]) *
                                static_cast<double>(weight[(o * kTaps + k) * channels + c]);
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

// One block per 32 channels of one tap of one output's kernel; one warp per eighth cell.
__global__ void __launch_bounds__(kWarp* kWarps)
    correlate_kernel(float* __restrict__ grad_weight, const float* __restrict__ grad_out,
                     const float* __restrict__ x, const float* __restrict__ offset, Sizes sizes) {
    static_assert(kWarps == kSlices, "a warp of a block is a slice of the sums");
    const std::int64_t channels = sizes.channels, cells = sizes.cells();
    const std::int64_t blocks = (channels + kWarp - 1) / kWarp;
    const std::int64_t work = sizes.outputs * kTaps * blocks;
    // All threads of a block run this loop together.
    for (const std::int64_t item : blocks_of_grid(work)) {
        const std::int64_t k = item / blocks % kTaps, o = item / blocks / kTaps;
        const std::int64_t c = item % blocks * kWarp + threadIdx.x;
        double sum = 0.0;
        for (const std::int64_t i : warps_of_block(sizes.images * cells)) {
            const std::int64_t cell = i % cells;
            const Tap tap = read_tap(offset + (i * kTaps + k) * 2, cell / sizes.width,
                                     cell % sizes.width, k, sizes);
            const double upstream = static_cast<double>(grad_out[i * sizes.outputs + o]);
            for (int corner = 0; corner < 4; ++corner) {
                if (tap.weight[corner] == 0.0 || c >= channels) continue;
                const double factor = upstream * tap.weight[corner];
                sum +=
                    factor * static_cast<double>(x[(i - cell + tap.pixel[corner]) * channels + c]);
            }
        }
        sum = fold_across_warps<kWarps>(sum, Sum{});
        if (threadIdx.y == 0 && c < channels) {
            grad_weight[(o * kTaps + k) * channels + c] = static_cast<float>(sum);
        }
    }
}

dim3 block_of_warps() {
    return dim3(kWarp, kWarps);
}

}  // namespace

void cuda(float* out /* [N,H,W,O] */, const float* x /* [N,H,W,C] */,
          const float* offset /* [N,H,W,9,2] (down, right) */, const float* weight /* [O,9,C] */,
          const Sizes& sizes, cudaStream_t stream) {
    const std::int64_t work = sizes.images * sizes.cells() * sizes.outputs;
    if (work == 0) return;
    launch("deform_conv", convolve_kernel, strided_blocks(work, kWarps), block_of_warps(), 0,
           stream, out, x, offset, weight, sizes);
}

void grad_x_cuda(float* grad_x /* [N,H,W,C] */, const float* grad_out /* [N,H,W,O] */,
                 const float* offset /* [N,H,W,9,2] (down, right) */,
                 const float* weight /* [O,9,C] */, const Sizes& sizes, cudaStream_t stream) {
    const std::int64_t blocks = (sizes.channels + kGathered - 1) / kGathered;
    const std::int64_t work = sizes.images * sizes.cells() * blocks;
    if (work == 0) return;
    launch("deform_conv grad_x", gather_kernel, strided_blocks(work, kWarps), block_of_warps(), 0,
           stream, grad_x, grad_out, offset, weight, sizes);
}

void grad_offset_cuda(float* grad_offset /* [N,H,W,9,2] */, const float* grad_out /* [N,H,W,O] */,
                      const float* x /* [N,H,W,C] */,
                      const float* offset /* [N,H,W,9,2] (down, right) */,
                      const float* weight /* [O,9,C] */, const Sizes& sizes, cudaStream_t stream) {
    const std::int64_t work = sizes.images * sizes.cells() * kTaps;
    if (work == 0) return;
    launch("deform_conv grad_offset", differentiate_kernel, strided_blocks(work, kWarps),
           block_of_warps(), 0, stream, grad_offset, grad_out, x, offset, weight, sizes);
}

void grad_weight_cuda(float* grad_weight /* [O,9,C] */, const float* grad_out /* [N,H,W,O] */,
                      const float* x /* [N,H,W,C] */,
                      const float* offset /* [N,H,W,9,2] (down, right) */, const Sizes& sizes,
                      cudaStream_t stream) {
    const std::int64_t blocks = (sizes.channels + kWarp - 1) / kWarp;
    const std::int64_t work = sizes.outputs * kTaps * blocks;
    if (work == 0) return;
    launch("deform_conv grad_weight", correlate_kernel, strided_blocks(work, 1), block_of_warps(),
           0, stream, grad_weight, grad_out, x, offset, sizes);
}

}  // namespace pycc::deform_conv
