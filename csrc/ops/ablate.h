// Randomized ablation: keep a uniformly random set of k entries of each image, fill the rest.
//
// The set consists of the first distinct integers of a stream of independent uniform integers; by
// symmetry, all sets of that size are equally likely. If more than half of the entries are kept,
// the stream determines the dropped entries. If n integers are missing, the next n words of the
// stream cannot give more than n: they may be taken in any order, or all at once.
//
// Complexity per row: O(min(k, size - k)) expected words of the stream, a pass over C * plane
// entries, and a bitmap of size / 32 words (on the CPU O(k log k) and a list if k is small).
#pragma once

#include <cstdint>

#include "../core/device.h"
#include "../core/philox.h"

#if defined(PYCC_CUDA)
#include "../core/cuda_api.h"
#endif

namespace pycc::ablate {

constexpr std::uint32_t kAblationPurpose = 0x551A4F0FU;  // CRC-32 of "ablation"

// Sizes and key: (seed, first_image+n, first_draw+j) determines the kept entries of row n*draws+j.
struct Ablation {
    std::int64_t images, channels, plane;  // plane: pixels of a channel
    std::int64_t draws, kept;
    bool by_element;  // whether entries are kept singly, or all channels of a pixel together
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

// Writes images where entries are kept, and fill elsewhere.
void cpu(float* out /* [N*draws,C,plane] */, const float* images /* [N,C,plane] */,
         const float* fill /* [C] */, const Ablation& ablation, int threads);

// Sums grad_out over the draws that keep an entry, in the order of the draws.
void backward_cpu(float* grad_images /* [N,C,plane] */,
                  const float* grad_out /* [N*draws,C,plane] */, const Ablation& ablation,
                  int threads);

// Writes the kept indices of the first row, ascending.
void indices_cpu(std::int64_t* indices /* [kept] */, const Ablation& ablation, int threads);

#if defined(PYCC_CUDA)
// `bits` is scratch memory and is overwritten.
void cuda(float* out /* [N*draws,C,plane] */, std::uint32_t* bits /* [N*draws,words] */,
          const float* images /* [N,C,plane] */, const float* fill /* [C] */,
          const Ablation& ablation, cudaStream_t stream);

void backward_cuda(float* grad_images /* [N,C,plane] */, std::uint32_t* bits /* [N*draws,words] */,
                   const float* grad_out /* [N*draws,C,plane] */, const Ablation& ablation,
                   cudaStream_t stream);

void indices_cuda(std::int64_t* indices /* [kept] */, std::uint32_t* bits /* [words] */,
                  const Ablation& ablation, cudaStream_t stream);
#endif

}  // namespace pycc::ablate
