#include "mask_hits.h"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <utility>
#include <vector>

#include "../core/parallel.h"
#include "../core/simd.h"

namespace pycc::mask_hits {
namespace {

using Word = std::uint64_t;
using Words = std::vector<Word>;

constexpr std::int64_t kBlock = 8;  // words per block
constexpr int kGroup = 7;           // bitmaps that are counted together, in 3 bits
constexpr int kGroupLevels = 3;

// A block of words: one or several registers, depending on the SIMD clone of the function.
using Block [[gnu::vector_size(kBlock * sizeof(Word))]] = Word;

inline void load(Block& block, const Word* words /* [kBlock] */) {
    std::memcpy(&block, words, sizeof(block));
}

inline void store(Word* words /* [kBlock] */, const Block& block) {
    std::memcpy(words, &block, sizeof(block));
}

std::size_t index(std::int64_t i) {
    return static_cast<std::size_t>(i);
}

// The bitmap of windows: rows of whole blocks of words.
struct Grid {
    explicit Grid(const Sizes& sizes)
        : rows(sizes.rows()), pitch((words_for(sizes.width) + kBlock - 1) / kBlock * kBlock) {}
    std::int64_t blocks() const { return rows * pitch / kBlock; }
    std::int64_t rows, pitch;
};

// Writes row y of a bitmap into `line`, padded with zeros up to pitch; returns whether any bit is
// set.
PYCC_SIMD bool read_row(Word* __restrict__ line /* [pitch] */,
                        const Word* __restrict__ flat /* [flat_words+pitch] */, std::int64_t y,
                        std::int64_t pitch, const Sizes& sizes) noexcept {
    const std::int64_t words = words_for(sizes.width);
    for (std::int64_t i = 0; i < pitch; ++i) line[i] = row_word(flat, y, i, sizes);
    line[words - 1] = row_end(flat, y, sizes);
    std::fill(line + words, line + pitch, 0);
    Word any = 0;
    for (std::int64_t i = 0; i < pitch; ++i) any |= line[i];
    return any != 0;
}

// Dilates the rows of the image: bit x becomes whether columns x to x+pw-1 contain a pixel. `line`
// and `spare` are 0 after the words of a row, where shifts read.
PYCC_SIMD void dilate_rows(Word* bits /* [H,pitch] */, const Word* flat /* [flat_words+pitch] */,
                           Word* line /* [2*pitch+1] */, Word* spare /* [2*pitch+1] */,
                           std::int64_t pitch, const Sizes& sizes) noexcept {
    for (std::int64_t y = 0; y < sizes.height; ++y) {
        Word* row = bits + y * pitch;
        if (!read_row(line, flat, y, pitch, sizes)) {
            std::fill(row, row + pitch, 0);
            continue;
        }
        for (std::int64_t reach = 1; reach < sizes.patch_width;) {
            const std::int64_t shift = next_shift(reach, sizes.patch_width);
            const Word part = static_cast<Word>(shift % kWordBits);
            for (std::int64_t i = 0; i < pitch; i += kBlock) {
                const Word* from = line + i + shift / kWordBits;
                Block own, low, high;
                load(own, line + i);
                load(low, from);
                load(high, from + 1);
                own |= low >> part | high << Word{1} << (kWordBits - 1 - part);  // as across()
                store(spare + i, own);
            }
            std::swap(line, spare);
            reach += shift;
        }
        std::copy(line, line + pitch, row);
    }
}

// Dilates the columns in place: row y becomes the OR of rows y to y+ph-1, for every window. With
// the rows cut into pieces of ph, that is the end of one piece and the beginning of the next (van
// Herk, 1992): two ORs per word for any ph.
PYCC_SIMD void dilate_columns(Word* bits /* [H,pitch] */, std::int64_t rows, std::int64_t pitch,
                              std::int64_t patch_height) noexcept {
    for (std::int64_t column = 0; column < pitch; column += kBlock) {
        const auto row = [&](std::int64_t y) { return bits + y * pitch + column; };
        for (std::int64_t piece = 0; piece < rows; piece += patch_height) {
            Block seen = {}, own;
            for (std::int64_t y = piece + patch_height - 1; y >= piece; --y) {
                load(own, row(y));
                store(row(y), seen |= own);
            }
            seen = Block{};
            const std::int64_t last = std::min(piece + patch_height, rows);
            for (std::int64_t y = piece + 1; y < last; ++y) {
                Block next;
                load(next, row(y + patch_height - 1));
                load(own, row(y));
                store(row(y), own | (seen |= next));
            }
        }
    }
}

// Adds `added` and `carry` to `plane`, bit by bit; `carry` becomes the carry to the next plane.
inline void add_level(Word* plane /* [kBlock] */, const Block& added, Block& carry) {
    Block own;
    load(own, plane);
    store(plane, own ^ added ^ carry);
    carry = (own & added) | (carry & (own ^ added));
}

// Adds `count` bitmaps to the counters of windows, which are bit planes: [block][level] blocks.
PYCC_SIMD void count_group(Word* planes, const Word* group, int count, std::int64_t stride,
                           std::int64_t blocks, int levels) noexcept {
    for (std::int64_t block = 0; block < blocks; ++block) {
        Block ones = {}, twos = {}, fours = {};
        for (int g = 0; g < count; ++g) {
            Block bits;
            load(bits, group + g * stride + block * kBlock);
            const Block two = ones & bits, four = twos & two;
            ones ^= bits;
            twos ^= two;
            fours ^= four;
        }
        Word* plane = planes + block * levels * kBlock;
        Block carry = {};
        add_level(plane, ones, carry);
        add_level(plane + kBlock, twos, carry);
        add_level(plane + 2 * kBlock, fours, carry);
        for (int level = kGroupLevels; level < levels; ++level) {
            add_level(plane + level * kBlock, Block{}, carry);
        }
    }
}

PYCC_SIMD void add_planes(Word* total /* [blocks,levels] blocks */, const Word* planes,
                          std::int64_t blocks, int levels) noexcept {
    for (std::int64_t block = 0; block < blocks; ++block) {
        Block carry = {}, added;
        for (std::int64_t i = block * levels; i < (block + 1) * levels; ++i) {
            load(added, planes + i * kBlock);
            add_level(total + i * kBlock, added, carry);
        }
    }
}

// Finds the largest counter and its first window. From the highest bit on, it keeps the windows
// that have the bit, if any has it.
void find_worst(std::int64_t* worst /* [3] */, const Words& planes, int levels, const Grid& grid,
                const Sizes& sizes) {
    Words left(index(grid.rows * grid.pitch), 0);
    for (std::int64_t y = 0; y < grid.rows; ++y) {
        Word* row = left.data() + y * grid.pitch;
        std::fill(row, row + sizes.cols() / kWordBits, ~Word{0});
        const std::int64_t rest = sizes.cols() % kWordBits;
        if (rest > 0) row[sizes.cols() / kWordBits] = (Word{1} << rest) - 1;
    }
    const auto plane = [&](std::size_t i, int level) {
        const auto block = i / index(kBlock), k = i % index(kBlock);
        return planes[(block * static_cast<std::size_t>(levels) + static_cast<std::size_t>(level)) *
                          index(kBlock) +
                      k];
    };
    worst[0] = 0;
    for (int level = levels - 1; level >= 0; --level) {
        Word any = 0;
        for (std::size_t i = 0; i < left.size(); ++i) any |= left[i] & plane(i, level);
        if (any == 0) continue;
        for (std::size_t i = 0; i < left.size(); ++i) left[i] &= plane(i, level);
        worst[0] |= std::int64_t{1} << level;
    }
    const auto first = std::find_if(left.begin(), left.end(), [](Word word) { return word != 0; });
    const std::int64_t word = first - left.begin();
    std::int64_t bit = 0;
    while ((*first >> bit & 1) == 0) ++bit;
    worst[1] = word / grid.pitch;
    worst[2] = word % grid.pitch * kWordBits + bit;
}

int bit_length(std::int64_t value) {
    int bits = 0;
    for (; value > 0; value >>= 1) ++bits;
    return bits;
}

// pack(set, flat) writes the bitmap of a set.
template <class Pack>
void count_sets(std::int64_t* worst /* [3] (sets, y, x) */, const Sizes& sizes, std::int64_t pixels,
                const Pack& pack, int threads) {
    std::fill(worst, worst + 3, 0);
    if (sizes.sets == 0) return;
    const Grid grid(sizes);
    const int levels = std::max(bit_length(sizes.sets), kGroupLevels);
    const std::int64_t bitmap = sizes.height * grid.pitch;
    const std::int64_t counters = grid.blocks() * kBlock * levels;

    // Each thread has its own counters, 0.2 ms of work or more, and its share of the memory.
    constexpr std::int64_t kMemory = std::int64_t{1} << 27;  // words, 1 GiB for all threads
    constexpr std::int64_t kWork = 1 << 18;                  // words and pixels
    const std::int64_t memory = counters + kGroup * bitmap + flat_words(sizes);
    const auto most =
        static_cast<int>(std::clamp<std::int64_t>(kMemory / memory, 1, std::max(threads, 1)));
    const std::int64_t work = bitmap + pixels / sizes.sets;
    Words total;
    std::mutex mutex;
    parallel_for(
        sizes.sets, (kWork + work - 1) / work, most, [&](std::int64_t begin, std::int64_t end) {
            Words planes(index(counters), 0), group(index(kGroup * bitmap));
            Words flat(index(flat_words(sizes) + grid.pitch)), line(index(2 * grid.pitch + 1), 0);
            Words spare(line);
            int count = 0;
            for (std::int64_t set = begin; set < end; ++set) {
                Word* bits = group.data() + count * bitmap;
                pack(set, flat.data());
                dilate_rows(bits, flat.data(), line.data(), spare.data(), grid.pitch, sizes);
                dilate_columns(bits, grid.rows, grid.pitch, sizes.patch_height);
                if (++count == kGroup || set + 1 == end) {
                    count_group(planes.data(), group.data(), count, bitmap, grid.blocks(), levels);
                    count = 0;
                }
            }
            const std::lock_guard<std::mutex> lock(
                mutex);  // sums of integers: the order does not matter
            if (total.empty()) {
                total = std::move(planes);
            } else {
                add_planes(total.data(), planes.data(), grid.blocks(), levels);
            }
        });
    find_worst(worst, total, levels, grid, sizes);
}

#if defined(__BYTE_ORDER__)
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "pack_bytes takes the lowest byte first");
#endif

// Returns a byte whose bit i is set if byte i of eight is not 0: each byte is reduced to its lowest
// bit, and the product moves these bits to the top byte.
Word pack_bytes(const std::uint8_t* bytes /* [8] */) {
    Word eight;
    std::memcpy(&eight, bytes, sizeof(eight));
    eight |= eight >> 4 & 0x0F0F0F0F0F0F0F0FU;
    eight |= eight >> 2 & 0x3F3F3F3F3F3F3F3FU;
    eight |= eight >> 1;
    return (eight & 0x0101010101010101U) * 0x0102040810204080U >> 56;
}

PYCC_SIMD void pack_mask(Word* flat /* [flat_words] */, const std::uint8_t* mask /* [H*W] */,
                         std::int64_t pixels) noexcept {
    const std::int64_t whole = pixels / kWordBits;
    for (std::int64_t word = 0; word < whole; ++word) {
        Word bits = 0;
        for (std::int64_t i = 0; i < kWordBits; i += 8) {
            bits |= pack_bytes(mask + word * kWordBits + i) << i;
        }
        flat[word] = bits;
    }
    Word rest = 0;
    for (std::int64_t i = whole * kWordBits; i < pixels; ++i) {
        rest |= static_cast<Word>(mask[i] != 0) << (i % kWordBits);
    }
    if (pixels % kWordBits > 0) flat[whole] = rest;
    flat[words_for(pixels)] = 0;
}

}  // namespace

void cpu(std::int64_t* worst /* [3] (sets, y, x) */, const std::int64_t* indices /* [total] */,
         const std::int64_t* offsets /* [M+1] */, const Sizes& sizes, int threads) {
    const auto pack = [&](std::int64_t set, Word* flat) {
        std::fill(flat, flat + flat_words(sizes), 0);
        for (std::int64_t i = offsets[set]; i < offsets[set + 1]; ++i) {
            const std::int64_t pixel = indices[i];
            if (is_pixel(pixel, sizes)) flat[pixel / kWordBits] |= Word{1} << (pixel % kWordBits);
        }
    };
    count_sets(worst, sizes, offsets[sizes.sets] - offsets[0], pack, threads);
}

void dense_cpu(std::int64_t* worst /* [3] (sets, y, x) */, const std::uint8_t* masks /* [M,H,W] */,
               const Sizes& sizes, int threads) {
    const std::int64_t pixels = sizes.height * sizes.width;
    const auto pack = [&](std::int64_t set, Word* flat) {
        pack_mask(flat, masks + set * pixels, pixels);
    };
    count_sets(worst, sizes, sizes.sets * pixels / 8, pack, threads);
}

}  // namespace pycc::mask_hits
