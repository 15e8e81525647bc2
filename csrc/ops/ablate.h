// Randomized ablation: images of which only a uniformly random set of k entries is kept.
//
// The set is made of the first distinct integers of a stream of independent, uniform ones; by
// symmetry every set of that size is as likely as any other. Where more than half is kept, the
// stream gives what is dropped. As long as n integers are missing, the next n words of the stream
// all count, whatever they give: so they may be taken in any order, or all at once.
#pragma once

#include <cstdint>

#include "../core/device.h"
#include "../core/philox.h"

#if defined(PYCC_CUDA)
#include <cuda_runtime.h>
#endif

namespace pycc::ablate {

constexpr std::uint32_t kAblationPurpose = 0x551A4F0FU;  // CRC-32 of "ablation"

// Which entries of what: row n*draws+j keeps those that (seed, first_image+n, first_draw+j) say.
struct Ablation {
    std::int64_t images, channels, plane;  // plane: pixels of a channel
    std::int64_t draws, kept;
    bool by_element;  // each entry of the array on its own, or all channels of a pixel together
    std::uint64_t seed;
    std::int64_t first_image, first_draw;

    PYCC_HD std::int64_t size() const { return by_element ? channels * plane : plane; }
    PYCC_HD std::int64_t rows() const { return images * draws; }
    PYCC_HD std::int64_t words() const { return (size() + 31) / 32; }  // of a row's bitmap
    PYCC_HD bool marks_dropped() const { return kept > size() / 2; }
    PYCC_HD std::int64_t marked() const { return marks_dropped() ? size() - kept : kept; }
    PYCC_HD std::uint32_t flip() const { return marks_dropped() ? ~std::uint32_t{0} : 0; }
    PYCC_HD std::int64_t first_bit(std::int64_t channel) const {
        return by_element ? channel * plane : 0;
    }
    PYCC_HD Stream stream(std::int64_t row) const {
        return {seed, kAblationPurpose, static_cast<std::uint32_t>(first_image + row / draws), 0,
                static_cast<std::uint32_t>(first_draw + row % draws)};
    }
};

// out = images where kept, fill elsewhere.
void cpu(float* out /* [N*draws,C,plane] */, const float* images /* [N,C,plane] */,
         const float* fill /* [C] */, const Ablation& ablation, int threads);

// Sums of grad_out over the draws of an image, in their order, where they keep the entry.
void backward_cpu(float* grad_images /* [N,C,plane] */,
                  const float* grad_out /* [N*draws,C,plane] */, const Ablation& ablation,
                  int threads);

// The kept indices of the first row, ascending.
void indices_cpu(std::int64_t* indices /* [kept] */, const Ablation& ablation, int threads);

#if defined(PYCC_CUDA)
// bits: scratch, overwritten.
void cuda(float* out, std::uint32_t* bits /* [N*draws,words] */, const float* images,
          const float* fill, const Ablation& ablation, cudaStream_t stream);

void backward_cuda(float* grad_images, std::uint32_t* bits /* [N*draws,words] */,
                   const float* grad_out, const Ablation& ablation, cudaStream_t stream);

void indices_cuda(std::int64_t* indices, std::uint32_t* bits /* [words] */,
                  const Ablation& ablation, cudaStream_t stream);
#endif

}  // namespace pycc::ablate
