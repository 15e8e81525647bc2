#include "../core/cuda.cuh"
#include "mask_hits.h"

namespace pycc::mask_hits {
namespace {

constexpr int kThreads = 256;

using Word = unsigned long long;  // the type of atomicOr; as wide as std::uint64_t
static_assert(sizeof(Word) == sizeof(std::uint64_t));

// One thread per index: finds its set by bisection, and sets its bit.
__global__ void scatter_kernel(std::uint64_t* __restrict__ flat /* [sets,slot], zeros */,
                               const std::int64_t* __restrict__ indices,
                               const std::int64_t* __restrict__ offsets, std::int64_t first,
                               std::int64_t last, std::int64_t begin, std::int64_t end,
                               std::int64_t slot, Sizes sizes) {
    for (const std::int64_t i : threads_of_grid(end, begin)) {
        const std::int64_t pixel = indices[i];
        if (!is_pixel(pixel, sizes)) continue;
        std::int64_t low = first, high = last;  // offsets[low] <= i < offsets[high]
        while (high - low > 1) {
            const std::int64_t middle = low + (high - low) / 2;
            if (offsets[middle] <= i) {
                low = middle;
            } else {
                high = middle;
            }
        }
        auto* word = reinterpret_cast<Word*>(flat + (low - first) * slot + pixel / kWordBits);
        atomicOr(word, Word{1} << (pixel % kWordBits));
    }
}

// One warp per word of a bitmap, one lane per two of its pixels.
__global__ void pack_kernel(std::uint64_t* __restrict__ flat /* [sets,slot] */,
                            const std::uint8_t* __restrict__ masks /* [sets,H,W] */,
                            std::int64_t sets, std::int64_t slot, Sizes sizes) {
    const std::int64_t pixels = sizes.height * sizes.width, words = flat_words(sizes);
    const std::int64_t lane = lane_of_warp();
    for (const std::int64_t item : warps_of_grid(sets * words)) {
        const std::int64_t set = item / words, word = item % words;
        const std::int64_t low = word * kWordBits + lane, high = low + kWarp;
        const std::uint8_t* mask = masks + set * pixels;
        const std::uint64_t lows = __ballot_sync(kAllLanes, low < pixels && mask[low] != 0);
        const std::uint64_t highs = __ballot_sync(kAllLanes, high < pixels && mask[high] != 0);
        if (lane == 0) flat[set * slot + word] = lows | (highs << kWarp);
    }
}

// The kernels below have one thread per word of a row: [sets,H,words].
__global__ void rows_kernel(std::uint64_t* __restrict__ bits,
                            const std::uint64_t* __restrict__ flat, std::int64_t sets,
                            std::int64_t slot, Sizes sizes) {
    const std::int64_t words = words_for(sizes.width), bitmap = sizes.height * words;
    for (const std::int64_t item : threads_of_grid(sets * bitmap)) {
        const std::int64_t set = item / bitmap, at = item % bitmap;
        const std::int64_t y = at / words, i = at % words;
        const std::uint64_t* source = flat + set * slot;
        bits[set * slot + at] =
            i + 1 < words ? row_word(source, y, i, sizes) : row_end(source, y, sizes);
    }
}

__global__ void dilate_rows_kernel(std::uint64_t* __restrict__ wider,
                                   const std::uint64_t* __restrict__ bits, std::int64_t shift,
                                   std::int64_t sets, std::int64_t slot, Sizes sizes) {
    const std::int64_t words = words_for(sizes.width), bitmap = sizes.height * words;
    const std::int64_t whole = shift / kWordBits, part = shift % kWordBits;
    for (const std::int64_t item : threads_of_grid(sets * bitmap)) {
        const std::int64_t set = item / bitmap, at = item % bitmap, i = at % words;
        const std::uint64_t* word = bits + set * slot + at;
        const std::uint64_t low = i + whole < words ? word[whole] : 0;
        const std::uint64_t high = i + whole + 1 < words ? word[whole + 1] : 0;
        wider[set * slot + at] = word[0] | across(low, high, part);
    }
}

__global__ void dilate_columns_kernel(std::uint64_t* __restrict__ higher,
                                      const std::uint64_t* __restrict__ bits, std::int64_t shift,
                                      std::int64_t sets, std::int64_t slot, Sizes sizes) {
    const std::int64_t words = words_for(sizes.width), bitmap = sizes.height * words;
    for (const std::int64_t item : threads_of_grid(sets * bitmap)) {
        const std::int64_t set = item / bitmap, at = item % bitmap;
        const std::uint64_t* word = bits + set * slot + at;
        const bool below = at / words + shift < sizes.height;
        higher[set * slot + at] = word[0] | (below ? word[shift * words] : 0);
    }
}

// One thread per window.
__global__ void count_kernel(std::int32_t* __restrict__ hits /* [rows,cols] */,
                             const std::uint64_t* __restrict__ bits, std::int64_t sets,
                             std::int64_t slot, Sizes sizes) {
    const std::int64_t words = words_for(sizes.width), cols = sizes.cols();
    for (const std::int64_t item : threads_of_grid(sizes.rows() * cols)) {
        const std::int64_t y = item / cols, x = item % cols;
        const std::uint64_t* word = bits + y * words + x / kWordBits;
        std::int32_t count = 0;
        for (std::int64_t set = 0; set < sets; ++set, word += slot) {
            count += static_cast<std::int32_t>(*word >> (x % kWordBits) & 1U);
        }
        hits[item] += count;
    }
}

// Computes the counts from the bitmaps in `flat`; the steps read and write `flat` and `spare`
// alternately.
void count_bitmaps(std::int32_t* hits /* [rows,cols] */, std::uint64_t* flat /* [sets,slot] */,
                   std::uint64_t* spare /* [sets,slot] */, std::int64_t sets, const Sizes& sizes,
                   cudaStream_t stream) {
    const std::int64_t slot = scratch_words(sizes);
    const unsigned int grid =
        strided_blocks(sets * sizes.height * words_for(sizes.width), kThreads);
    launch("mask_hits rows", rows_kernel, grid, kThreads, 0, stream, spare, flat, sets, slot,
           sizes);
    std::uint64_t *bits = spare, *next = flat;
    const auto swap = [&] {
        std::uint64_t* const written = next;
        next = bits;
        bits = written;
    };
    for (std::int64_t reach = 1; reach < sizes.patch_width;) {
        const std::int64_t shift = next_shift(reach, sizes.patch_width);
        launch("mask_hits along rows", dilate_rows_kernel, grid, kThreads, 0, stream, next, bits,
               shift, sets, slot, sizes);
        swap();
        reach += shift;
    }
    for (std::int64_t reach = 1; reach < sizes.patch_height;) {
        const std::int64_t shift = next_shift(reach, sizes.patch_height);
        launch("mask_hits down columns", dilate_columns_kernel, grid, kThreads, 0, stream, next,
               bits, shift, sets, slot, sizes);
        swap();
        reach += shift;
    }
    launch("mask_hits count", count_kernel, strided_blocks(sizes.rows() * sizes.cols(), kThreads),
           kThreads, 0, stream, hits, bits, sets, slot, sizes);
}

}  // namespace

void cuda(std::int32_t* hits /* [H-ph+1,W-pw+1] */,
          std::uint64_t* scratch /* [2,last-first,words] */,
          const std::int64_t* indices /* [total] */, const std::int64_t* offsets /* [M+1] */,
          std::int64_t first, std::int64_t last, std::int64_t begin, std::int64_t end,
          const Sizes& sizes, cudaStream_t stream) {
    const std::int64_t sets = last - first, slot = scratch_words(sizes);
    if (sets == 0 || begin == end) return;
    const std::size_t bytes = static_cast<std::size_t>(sets * slot) * sizeof(std::uint64_t);
    check_cuda("mask_hits", cudaMemsetAsync(scratch, 0, bytes, stream));
    launch("mask_hits scatter", scatter_kernel, strided_blocks(end - begin, kThreads), kThreads, 0,
           stream, scratch, indices, offsets, first, last, begin, end, slot, sizes);
    count_bitmaps(hits, scratch, scratch + sets * slot, sets, sizes, stream);
}

void dense_cuda(std::int32_t* hits /* [H-ph+1,W-pw+1] */,
                std::uint64_t* scratch /* [2,last-first,words] */,
                const std::uint8_t* masks /* [M,H,W] */, std::int64_t first, std::int64_t last,
                const Sizes& sizes, cudaStream_t stream) {
    const std::int64_t sets = last - first, slot = scratch_words(sizes);
    if (sets == 0) return;
    launch("mask_hits pack", pack_kernel,
           strided_blocks(sets * flat_words(sizes) * kWarp, kThreads), kThreads, 0, stream, scratch,
           masks + first * sizes.height * sizes.width, sets, slot, sizes);
    count_bitmaps(hits, scratch, scratch + sets * slot, sets, sizes, stream);
}

}  // namespace pycc::mask_hits
