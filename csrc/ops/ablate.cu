#include "../core/bits.h"
#include "../core/cuda.cuh"
#include "ablate.h"

namespace pycc::ablate {
namespace {

constexpr int kThreads = 256;
constexpr int kMarkThreads = 1024;

// One block per row: while n entries are missing, its threads take the next n words of the stream.
__global__ void __launch_bounds__(kMarkThreads)
    mark_kernel(std::uint32_t* __restrict__ all_bits, Ablation ablation) {
    const std::int64_t words = ablation.words();
    const Bounded bounded(static_cast<std::uint64_t>(ablation.size()));
    for (const std::int64_t row : blocks_of_grid(ablation.rows())) {
        std::uint32_t* bits = all_bits + row * words;
        for (const std::int64_t i : threads_of_block(words)) bits[i] = 0;
        __syncthreads();
        const Stream stream = ablation.stream(row);
        std::int64_t begin = 0, missing = ablation.marked();
        while (missing > 0) {
            const std::int64_t end = begin + missing;
            unsigned int distinct = 0;
            for (const std::int64_t block : threads_of_block((end + 3) / 4, begin / 4)) {
                const Words drawn = stream.block(static_cast<std::uint64_t>(block));
                for (int lane = 0; lane < 4; ++lane) {
                    const std::int64_t word = 4 * block + lane;
                    if (word < begin || word >= end) continue;
                    const std::int64_t entry = bounded(drawn.at[lane]);
                    if (entry < 0) continue;
                    const std::uint32_t bit = std::uint32_t{1} << (entry % 32);
                    if ((atomicOr(bits + entry / 32, bit) & bit) == 0) ++distinct;
                }
            }
            begin = end;
            missing -= fold_block<kMarkThreads>(distinct, Sum{});
        }
    }
}

// One thread per entry; blockIdx.y is the plane (row and channel).
__global__ void blend_kernel(float* __restrict__ out, const std::uint32_t* __restrict__ all_bits,
                             const float* __restrict__ images, const float* __restrict__ fill,
                             Ablation ablation) {
    const std::int64_t planes = ablation.rows() * ablation.channels;
    for (const std::int64_t i : planes_of_grid(planes)) {
        const std::int64_t row = i / ablation.channels, c = i % ablation.channels;
        const std::uint32_t* bits = all_bits + row * ablation.words();
        const float* image =
            images + (row / ablation.draws * ablation.channels + c) * ablation.plane;
        float* target = out + i * ablation.plane;
        const std::int64_t first_bit = ablation.first_bit(c);
        const bool dropped = ablation.marks_dropped();
        const float other = fill[c];
        for (const std::int64_t at : threads_of_grid(ablation.plane)) {
            target[at] = bit_at(bits, first_bit + at) != dropped ? image[at] : other;
        }
    }
}

// One thread per entry of the images: sums over the draws in the order of the CPU.
__global__ void sum_kernel(float* __restrict__ grad_images,
                           const std::uint32_t* __restrict__ all_bits,
                           const float* __restrict__ grad_out, Ablation ablation) {
    const std::int64_t planes = ablation.images * ablation.channels;
    for (const std::int64_t i : planes_of_grid(planes)) {
        const std::int64_t n = i / ablation.channels, c = i % ablation.channels;
        const std::int64_t first_bit = ablation.first_bit(c);
        const bool dropped = ablation.marks_dropped();
        for (const std::int64_t at : threads_of_grid(ablation.plane)) {
            float sum = 0.0F;
            for (std::int64_t j = 0; j < ablation.draws; ++j) {
                const std::int64_t row = n * ablation.draws + j;
                if (bit_at(all_bits + row * ablation.words(), first_bit + at) != dropped) {
                    sum += grad_out[(row * ablation.channels + c) * ablation.plane + at];
                }
            }
            grad_images[i * ablation.plane + at] = sum;
        }
    }
}

// One block: each thread counts the kept entries of its range of words, gets the number of entries
// before it by a prefix sum, and writes its entries.
__global__ void __launch_bounds__(kMarkThreads)
    list_kernel(std::int64_t* __restrict__ indices, const std::uint32_t* __restrict__ bits,
                Ablation ablation) {
    PYCC_SHARED(before, std::int64_t[kMarkThreads]);
    const std::int64_t words = ablation.words(), size = ablation.size();
    const std::int64_t stretch = (words + kMarkThreads - 1) / kMarkThreads;
    const std::int64_t begin = threadIdx.x * stretch < words ? threadIdx.x * stretch : words;
    const std::int64_t end = begin + stretch < words ? begin + stretch : words;
    const auto kept = [&](std::int64_t word) {
        std::uint32_t value = bits[word] ^ ablation.flip();
        const std::int64_t rest = size - 32 * word;
        if (rest < 32) value &= (std::uint32_t{1} << rest) - 1;
        return value;
    };
    std::int64_t count = 0;
    for (std::int64_t word = begin; word < end; ++word) count += __popc(kept(word));
    before[threadIdx.x] = count;
    __syncthreads();
    for (unsigned int reach = 1; reach < kMarkThreads; reach *= 2) {  // inclusive prefix sums
        const std::int64_t lower = threadIdx.x >= reach ? before[threadIdx.x - reach] : 0;
        __syncthreads();
        before[threadIdx.x] += lower;
        __syncthreads();
    }
    std::int64_t* target = indices + before[threadIdx.x] - count;
    for (std::int64_t word = begin; word < end; ++word) {
        for (std::uint32_t value = kept(word); value != 0; value &= value - 1) {
            *target++ = 32 * word + __ffs(static_cast<int>(value)) - 1;
        }
    }
}

void mark_rows(std::uint32_t* bits /* [rows,words] */, const Ablation& ablation,
               cudaStream_t stream) {
    launch("ablate: mark", mark_kernel, strided_blocks(ablation.rows(), 1), kMarkThreads, 0, stream,
           bits, ablation);
}

}  // namespace

void cuda(float* out /* [N*draws,C,plane] */, std::uint32_t* bits /* [N*draws,words] */,
          const float* images /* [N,C,plane] */, const float* fill /* [C] */,
          const Ablation& ablation, cudaStream_t stream) {
    const std::int64_t planes = ablation.rows() * ablation.channels;
    if (planes * ablation.plane == 0) return;
    mark_rows(bits, ablation, stream);
    launch("ablate", blend_kernel, strided_planes(ablation.plane, kThreads, planes), kThreads, 0,
           stream, out, bits, images, fill, ablation);
}

void backward_cuda(float* grad_images /* [N,C,plane] */, std::uint32_t* bits /* [N*draws,words] */,
                   const float* grad_out /* [N*draws,C,plane] */, const Ablation& ablation,
                   cudaStream_t stream) {
    const std::int64_t planes = ablation.images * ablation.channels;
    if (planes * ablation.plane == 0) return;
    mark_rows(bits, ablation, stream);
    launch("ablate backward", sum_kernel, strided_planes(ablation.plane, kThreads, planes),
           kThreads, 0, stream, grad_images, bits, grad_out, ablation);
}

void indices_cuda(std::int64_t* indices /* [kept] */, std::uint32_t* bits /* [words] */,
                  const Ablation& ablation, cudaStream_t stream) {
    if (ablation.kept == 0) return;
    mark_rows(bits, ablation, stream);
    launch("ablation_indices", list_kernel, 1, kMarkThreads, 0, stream, indices, bits, ablation);
}

}  // namespace pycc::ablate
