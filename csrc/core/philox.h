// Counter-based random numbers: the same words as the streams of pycc.random.
#pragma once

#include <cstdint>

#include "device.h"

namespace pycc {

struct Words {
    std::uint32_t at[4];
};

// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
PYCC_HD Words philox4x32(Words counter, std::uint32_t key0, std::uint32_t key1) {
    for (int round = 0; round < 10; ++round) {
        const std::uint64_t product0 = std::uint64_t{0xD2511F53U} * counter.at[0];
        const std::uint64_t product1 = std::uint64_t{0xCD9E8D57U} * counter.at[2];
        counter = {{static_cast<std::uint32_t>(product1 >> 32) ^ counter.at[1] ^ key0,
                    static_cast<std::uint32_t>(product1),
                    static_cast<std::uint32_t>(product0 >> 32) ^ counter.at[3] ^ key1,
                    static_cast<std::uint32_t>(product0)}};
        key0 += 0x9E3779B9U;
        key1 += 0xBB67AE85U;
    }
    return counter;
}

// The words of pycc.random.Stream(seed, purpose, image=, step=, draw=), four per block; `purpose`
// is the CRC-32 of its name.
class Stream {
  public:
    PYCC_HD Stream(std::uint64_t seed, std::uint32_t purpose, std::uint32_t image,
                   std::uint32_t step, std::uint32_t draw)
        : mixed_(philox4x32({{purpose, image, step, draw}}, static_cast<std::uint32_t>(seed),
                            static_cast<std::uint32_t>(seed >> 32))) {}

    PYCC_HD Words block(std::uint64_t index) const {
        return philox4x32({{static_cast<std::uint32_t>(index),
                            static_cast<std::uint32_t>(index >> 32), mixed_.at[2], mixed_.at[3]}},
                          mixed_.at[0], mixed_.at[1]);
    }

  private:
    Words mixed_;
};

// Uniform integers of {0, ..., size - 1} from words of 32 random bits, without bias (Lemire, "Fast
// random integer generation in an interval", 2019): a word is rejected if the product's lower half
// is below 2^32 mod size, so that each integer has the same number of words.
class Bounded {
  public:
    PYCC_HD explicit Bounded(std::uint64_t size /* within [1, 2^32] */)
        : size_(size), reject_(static_cast<std::uint32_t>((std::uint64_t{1} << 32) % size)) {}

    // Returns the integer of `word`, or -1 if the word is rejected.
    PYCC_HD std::int64_t operator()(std::uint32_t word) const {
        const std::uint64_t product = word * size_;
        if (static_cast<std::uint32_t>(product) < reject_) return -1;
        return static_cast<std::int64_t>(product >> 32);
    }

  private:
    std::uint64_t size_;
    std::uint32_t reject_;
};

}  // namespace pycc
