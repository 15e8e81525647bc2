// The largest number of sets of pixels that one patch window can touch, and its place: exact.
//
// All windows are computed at once, with bitmaps of 64 pixels per word. Complexity: O(total + M H
// (W / 64) log(pw)) word operations on the CPU, where `total` is the number of indices.
#pragma once

#include <cstdint>

#include "../core/device.h"

#if defined(PYCC_CUDA)
#include "../core/cuda_api.h"
#endif

namespace pycc::mask_hits {

struct Sizes {
    std::int64_t sets, height, width;        // M, H, W; 1 <= H, W
    std::int64_t patch_height, patch_width;  // 1 <= ph <= H, 1 <= pw <= W
    PYCC_HD std::int64_t rows() const { return height - patch_height + 1; }  // of windows
    PYCC_HD std::int64_t cols() const { return width - patch_width + 1; }
};

// A set is a bitmap: pixel i of the image is bit i % 64 of word i / 64.
constexpr std::int64_t kWordBits = 64;

PYCC_HD std::int64_t words_for(std::int64_t bits) {
    return (bits + kWordBits - 1) / kWordBits;
}

// Words of a bitmap of H*W pixels, plus one so that a row can be read across two words.
PYCC_HD std::int64_t flat_words(const Sizes& sizes) {
    return words_for(sizes.height * sizes.width) + 1;
}

// Words of each of the two scratch buffers that a set of a batch needs on CUDA.
PYCC_HD std::int64_t scratch_words(const Sizes& sizes) {
    const std::int64_t rows = sizes.height * words_for(sizes.width), flat = flat_words(sizes);
    return rows > flat ? rows : flat;
}

// Whether an index is a pixel of the image; any value.
PYCC_HD bool is_pixel(std::int64_t index, const Sizes& sizes) {
    return index >= 0 && index < sizes.height * sizes.width;
}

// Returns 64 bits of two neighbouring words, from bit `from` of the first on, 0 <= from < 64.
PYCC_HD std::uint64_t across(std::uint64_t low, std::uint64_t high, std::int64_t from) {
    return (low >> from) |
           ((high << 1) << (kWordBits - 1 - from));  // with `from` 0, no bit of high
}

// Returns word i of row y, whose bit 0 is column 64*i; after the last column, other rows follow.
PYCC_HD std::uint64_t row_word(const std::uint64_t* flat /* [flat_words] */, std::int64_t y,
                               std::int64_t i, const Sizes& sizes) {
    const std::int64_t first = y * sizes.width;
    const std::uint64_t* word = flat + first / kWordBits + i;
    return across(word[0], word[1], first % kWordBits);
}

// Returns the last word of row y, with the bits after the last column set to 0.
PYCC_HD std::uint64_t row_end(const std::uint64_t* flat /* [flat_words] */, std::int64_t y,
                              const Sizes& sizes) {
    const std::int64_t words = words_for(sizes.width);
    const std::uint64_t unused = static_cast<std::uint64_t>(words * kWordBits - sizes.width);
    return row_word(flat, y, words - 1, sizes) & (~std::uint64_t{0} >> unused);
}

// Bit x of a row becomes the OR of bits x to x+pw-1 by ORs of the row with itself, shifted. Since
// OR is idempotent, steps may overlap. Returns the shift that extends a reach of `reach` bits:
PYCC_HD std::int64_t next_shift(std::int64_t reach, std::int64_t patch) {
    return reach < patch - reach ? reach : patch - reach;
}

// Writes (largest number of sets that one window touches, y, x of the first such window). Set m has
// the pixels indices[offsets[m]] to indices[offsets[m+1]-1], in any order; indices that are not
// pixels are skipped.
void cpu(std::int64_t* worst /* [3] */, const std::int64_t* indices /* [total] */,
         const std::int64_t* offsets /* [M+1] */, const Sizes& sizes, int threads);

// The same for masks of 0 and 1.
void dense_cpu(std::int64_t* worst /* [3] */, const std::uint8_t* masks /* [M,H,W] */,
               const Sizes& sizes, int threads);

#if defined(PYCC_CUDA)
// Adds the sets [first, last), whose indices are [begin, end), to the `hits` of every window.
void cuda(std::int32_t* hits /* [H-ph+1,W-pw+1] */,
          std::uint64_t* scratch /* [2,last-first,words] */,
          const std::int64_t* indices /* [total] */, const std::int64_t* offsets /* [M+1] */,
          std::int64_t first, std::int64_t last, std::int64_t begin, std::int64_t end,
          const Sizes& sizes, cudaStream_t stream);

void dense_cuda(std::int32_t* hits /* [H-ph+1,W-pw+1] */,
                std::uint64_t* scratch /* [2,last-first,words] */,
                const std::uint8_t* masks /* [M,H,W] */, std::int64_t first, std::int64_t last,
                const Sizes& sizes, cudaStream_t stream);
#endif

}  // namespace pycc::mask_hits
