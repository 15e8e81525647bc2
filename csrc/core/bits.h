// Bitmaps: bit i of a row is bit i % 32 of word i / 32.
#pragma once

#include <cstdint>

#include "device.h"

namespace pycc {

// Returns the 32 bits that start at `bit`; words from index `words` on are not read and count as 0.
PYCC_HD std::uint32_t bits_from(const std::uint32_t* bits /* [words] */, std::int64_t words,
                                std::int64_t bit) {
    const std::int64_t word = bit / 32;
    const int shift = static_cast<int>(bit % 32);
    const std::uint32_t low = bits[word] >> shift;
    if (shift == 0 || word + 1 >= words) return low;
    return low | (bits[word + 1] << (32 - shift));
}

PYCC_HD bool bit_at(const std::uint32_t* bits /* [words] */, std::int64_t bit) {
    return ((bits[bit / 32] >> (bit % 32)) & 1U) != 0;
}

}  // namespace pycc
